"""The web page in a real browser, in front of the real stack."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

from contract.specs import BlockSpec, InferenceServerSpec
from tests.e2e.local_stack import LocalStack
from tests.programs import needs, program
from tests.web.tier_process import TierProcess

pytestmark = [pytest.mark.slow, needs("chromium")]
# Without them Chromium asks after its maker's hosts at every start.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LONG = "Write a very long story about a road that never ends."
BLOCK = "pytorch-block-3"
ANSWER_MS, RECOVERY_MS = 60_000, 90_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(program("chromium")), args=list(QUIET)
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, local_stack: LocalStack) -> Iterator[Page]:
    """The page, ready. Nothing may fail on its console, nothing may go elsewhere."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: _note_error(said, faults))
    page.on("request", lambda asked: _note_foreign(asked.url, local_stack.url, faults))
    page.goto(local_stack.url)
    use_settings(page, max_completion_tokens=24)
    expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)
    yield page
    page.close()
    assert faults == []


def _note_error(said: ConsoleMessage, faults: list[str]) -> None:
    # The browser itself writes a line about each answer that is no success.
    if said.type == "error" and not said.text.startswith("Failed to load resource"):
        faults.append(said.text)


def _note_foreign(url: str, own: str, faults: list[str]) -> None:
    if not url.startswith(own):
        faults.append(f"asked {url}")


def use_settings(page: Page, **settings: float) -> None:
    """As if the user had saved them; answers do not depend on chance."""
    stored = json.dumps({"temperature": 0, **settings})
    page.evaluate("text => localStorage.setItem('splitstack.settings', text)", stored)
    page.reload()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> list[str]:
    return page.locator(".message.assistant .body").all_inner_texts()


def finished(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=ANSWER_MS)


def test_an_answer_streams_and_is_counted(page: Page) -> None:
    body = page.locator(".message.assistant .body")
    ask(page, "What is the capital of France?")
    expect(body).to_contain_text("The", timeout=ANSWER_MS)
    finished(page)
    expect(body).to_contain_text("Paris")
    meta = page.locator(".message.assistant .meta")
    expect(meta).to_contain_text(re.compile(r"\d+ tokens"))
    expect(meta).to_contain_text(re.compile(r"[\d.]+ tokens/s"))
    expect(meta).to_contain_text(re.compile(r"first after \d+ ms"))


def test_text_grows_and_stop_ends_it(page: Page) -> None:
    use_settings(page)
    ask(page, LONG)
    body = page.locator(".message.assistant .body")
    expect(body).to_have_text(re.compile(r".{20,}"), timeout=ANSWER_MS)
    early = answers(page)[0]
    expect(body).not_to_have_text(early)
    page.keyboard.press("Escape")
    finished(page)
    expect(page.locator(".message.assistant .meta")).to_contain_text("stopped")
    running = page.locator("#figures div", has_text="Running").locator("dd")
    expect(running).to_have_text("0", timeout=5000)


def test_sessions_are_kept_begun_anew_and_deleted(page: Page) -> None:
    ask(page, "What is two plus two?")
    finished(page)
    page.reload()
    assert len(answers(page)) == 1
    page.locator("#new-session").click()
    assert answers(page) == []
    page.get_by_role("button", name="What is two plus two?", exact=True).click()
    assert len(answers(page)) == 1
    page.get_by_role("button", name="Delete What is two plus two?").click()
    assert answers(page) == []


def test_settings_go_into_the_request(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System message").fill("Answer with one word.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("3")
    page.get_by_role("button", name="Save").click()
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "What is the capital of Italy?")
    body = asked.value.post_data_json
    finished(page)
    assert body is not None
    assert body["messages"][0] == {"role": "system", "content": "Answer with one word."}
    assert (body["temperature"], body["max_completion_tokens"]) == (0, 3)
    assert (body["model"], body["stream"]) == (BLOCK, True)
    expect(page.locator(".message.assistant .meta")).to_contain_text("3 tokens")


def test_a_question_asked_before_a_model_is_known_waits_for_it(page: Page) -> None:
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    ask(page, "What is the capital of France?")
    expect(page.locator("#waiting")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#waiting")).to_be_hidden()
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#waiting")).to_be_visible()
    assert answers(page) == []
    held[0].continue_()
    expect(page.locator(".message.assistant .body")).to_contain_text("Paris", timeout=ANSWER_MS)
    expect(page.locator("#waiting")).to_be_hidden()
    expect(page.get_by_label("Message", exact=True)).to_have_value("")


def test_what_the_server_refuses_is_said(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Most tokens").fill("36000")
    page.get_by_role("button", name="Save").click()
    ask(page, "hello")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("max_completion_tokens")
    expect(alert).to_contain_text("request ")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()


def test_a_killed_stage_is_seen_and_comes_back(page: Page, local_stack: LocalStack) -> None:
    use_settings(page)
    ask(page, LONG)
    body = page.locator(".message.assistant .body")
    expect(body).to_have_text(re.compile(r".{20,}"), timeout=ANSWER_MS)
    before = page.locator("#figures div", has_text="Epoch").locator("dd").inner_text()
    local_stack.kill("stage-1")
    expect(page.locator("#group-state")).not_to_have_text("ready", timeout=10_000)
    expect(page.locator("#group-reason")).to_contain_text("rank 1")
    expect(page.locator(".pause")).to_contain_text("goes on by itself")
    early = answers(page)[0]
    expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)
    expect(page.locator(".rank").nth(1)).to_contain_text("restarted once")
    expect(body).not_to_have_text(early, timeout=ANSWER_MS)
    assert answers(page)[0].startswith(early.removesuffix("\n"))
    epoch = page.locator("#figures div", has_text="Epoch").locator("dd").inner_text()
    assert int(epoch) > int(before)
    page.get_by_role("button", name="Stop").click()
    finished(page)


def test_the_boxes_say_what_each_rank_holds(page: Page) -> None:
    first, second = page.locator(".rank").all()
    expect(first).to_contain_text(re.compile(r"layers 0 to \d+"))
    expect(second).to_contain_text(re.compile(r"layers \d+ to 29"))
    expect(first).to_contain_text("MB weights")
    expect(first).to_contain_text("ms a step")
    expect(first).to_contain_text("% waiting")


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
        assert "Paris" in answers(page)[0]
        assert page.evaluate("localStorage.getItem('splitstack.key')") is None
        page.close()


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.locator("body").press("Tab")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText"))
    wanted = {"block", "open-settings", "open-key", "new-session", "scroll", "question"}
    assert wanted <= reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, textarea, input')].filter(one => !("
        "one.ariaLabel || one.innerText.trim() || one.labels?.length || one.hidden)).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(
    browser: Browser, local_stack: LocalStack, scheme: str
) -> None:
    """WCAG 2's contrast of 4.5 for text, for every pair of colours that the page uses for it."""
    page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(local_stack.url)
    pairs = ["text/ground", "text/surface", "soft/ground", "soft/surface", "soft/sunken"]
    pairs += ["accent-text/accent", "good/good-wash", "warn/warn-wash", "bad/bad-wash"]
    for pair in pairs:
        text, ground = (_luminance(page, f"--{name}") for name in pair.split("/"))
        brighter, darker = max(text, ground), min(text, ground)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, pair
    page.close()


def _luminance(page: Page, name: str) -> float:
    colour = page.evaluate(
        f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()"
    )
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_shows_one_thing_at_a_time(browser: Browser, local_stack: LocalStack) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(local_stack.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("#pipeline")).to_be_hidden()
    page.get_by_role("button", name="Pipeline", exact=True).click()
    expect(page.locator(".rank").first).to_be_visible(timeout=10_000)
    expect(page.locator("#chat")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_markup_in_an_answer_stays_text(page: Page) -> None:
    answer = "<b>a</b> **b** `c`\n```html\n<script>alert(1)</script>\n```"
    messages = [
        {"role": "user", "content": "<img src=x onerror=alert(1)>"},
        {"role": "assistant", "content": answer},
    ]
    stored = json.dumps([{"id": "1", "messages": messages}])
    page.evaluate("text => localStorage.setItem('splitstack.sessions', text)", stored)
    page.reload()
    body = page.locator(".message.assistant .body")
    expect(body).to_contain_text("<b>a</b> b c")
    expect(body.locator("strong")).to_have_text("b")
    expect(body.locator("pre")).to_have_text("<script>alert(1)</script>")
    assert page.locator(".message img").count() == 0
