"""The web page for everybody: keys, keyboard, phones, contrast, and what axe-core finds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, expect

from contract.specs import BlockSpec, InferenceServerSpec
from tests.e2e.browser_page import (
    BLOCK,
    RECOVERY_MS,
    answers,
    ask,
    finished,
    open_page,
    use_settings,
)
from tests.e2e.local_stack import LocalStack
from tests.programs import needs
from tests.web.tier_process import TierProcess

pytestmark = [pytest.mark.slow, needs("chromium")]
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
}
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
SMALLEST_TARGET = 44  # pixels
# A conversation with everything that a message may have.
MESSAGES = [
    {"role": "user", "content": "What is the capital of France?"},
    {
        "role": "assistant",
        "content": "# Paris\n- **one**\n```py\nx = 1\n```",
        "thinking": "Hm.",
        "tokens": 9,
    },
    {"role": "user", "content": "And of Spain? " * 400},
    {"role": "assistant", "content": "Mad", "cut": "The connection was lost.", "request_id": "1f"},
]


def test_a_key_is_asked_for_and_used(
    browser: Browser, local_stack: LocalStack, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    digest = hashlib.sha256(b"a-key-of-the-test").hexdigest()
    keys.write_text(json.dumps([{"name": "test", "sha256": digest}]))
    block = BlockSpec(BLOCK, local_stack.processes()[f"proxy-{BLOCK}"]["url"])
    spec = InferenceServerSpec("local", (block,))
    with TierProcess(
        "inference_server", spec, tmp_path, None, "--api-keys-file", str(keys)
    ) as server:
        page = browser.new_page()
        page.goto(server.url)
        use_settings(page, max_completion_tokens=24)
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()
        expect(page.locator("#group-state")).to_have_text("no connection")
        page.get_by_label("Key", exact=True).fill("a-wrong-key")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("not known here")
        page.get_by_label("Key", exact=True).fill("a-key-of-the-test")
        page.keyboard.press("Enter")
        expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)
        ask(page, "What is the capital of France?")
        finished(page)
        assert answers(page)[0]
        assert page.evaluate("localStorage.getItem('splitstack.key')") is None
        page.close()


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.locator("body").press("Tab")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    wanted = {"block", "open-settings", "open-key", "new-session", "find-session", "export-all"}
    wanted |= {"open-log", "Session", "scroll", "question", "API description", "Metrics"}
    assert wanted <= reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, textarea, input')].filter(one => !("
        "one.ariaLabel || one.innerText.trim() || one.labels?.length || !one.checkVisibility()))"
        ".length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("how", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_serious(
    browser: Browser, local_stack: LocalStack, scheme: str, how: dict[str, Any]
) -> None:
    with open_page(
        browser, local_stack.url, color_scheme=scheme, reduced_motion="reduce", **how
    ) as page:
        assert serious(page) == []
        show_conversation(page)
        page.locator("#session-menu summary").click()
        page.get_by_text("Thinking", exact=True).click()
        assert serious(page) == []
        for button in ("#open-settings", "#open-key", "#rename-session"):
            if button == "#rename-session":
                page.locator("#session-menu summary").click()
            page.locator(button).click()
            assert serious(page) == []
            page.keyboard.press("Escape")
        if how is PHONE:
            page.get_by_role("button", name="Pipeline", exact=True).click()
            assert serious(page) == []
            page.get_by_role("button", name="Sessions", exact=True).click()
            assert serious(page) == []
        page.locator("#open-log").click()
        assert serious(page) == []


def show_conversation(page: Page) -> None:
    stored = json.dumps({"id": "1", "at": 1, "messages": MESSAGES})
    page.evaluate("text => localStorage.setItem('splitstack.session.1', text)", stored)
    page.reload()
    expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the elements."""
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {', '.join(str(node['target']) for node in one['nodes'])}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_a_phone_shows_one_thing_at_a_time(browser: Browser, local_stack: LocalStack) -> None:
    with open_page(browser, local_stack.url, **PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert "Watch it at work." in page.locator("#welcome").inner_text()
        expect(page.locator("#pipeline")).to_be_hidden()
        page.get_by_role("button", name="Pipeline", exact=True).click()
        expect(page.locator(".rank").first).to_be_visible()
        expect(page.locator("#chat")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_finger_hits_everything_on_a_phone(browser: Browser, local_stack: LocalStack) -> None:
    with open_page(browser, local_stack.url, **PHONE) as page:
        assert small_targets(page) == []
        show_conversation(page)
        page.locator("#session-menu summary").click()
        assert small_targets(page) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Settings").click()
        assert small_targets(page) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Sessions", exact=True).click()
        expect(page.locator("#dim")).to_be_visible()
        page.wait_for_timeout(300)
        assert small_targets(page) == []
        page.touchscreen.tap(380, 500)
        expect(page.locator("#sessions")).to_be_hidden()


def small_targets(page: Page) -> list[str]:
    """What can be tapped and is smaller than a finger; links in a line may be narrow."""
    found: list[str] = page.evaluate(
        """least => [...document.querySelectorAll("button, a, select, summary, input, textarea")]
        .filter(one => one.checkVisibility({visibilityProperty: true}) && !one.matches(".skip"))
        .map(one => [one, (one.closest("label.check") ?? one).getBoundingClientRect()])
        .filter(([one, box]) => box.height < least || (box.width < least && one.localName !== "a"))
        .map(([one, box]) => `${one.outerHTML.slice(0, 60)} ${box.width} x ${box.height}`)""",
        SMALLEST_TARGET,
    )
    return found
