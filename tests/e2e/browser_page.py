"""The web page in a real browser: what its tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

LONG = "Write a very long story about a road that never ends."
BLOCK = "pytorch-block-3"
ANSWER_MS, RECOVERY_MS = 60_000, 90_000
# Without them Chromium asks after its maker's hosts at every start.
CHROMIUM_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def open_page(
    browser: Browser,
    url: str,
    *,
    before: str = "",
    settings: dict[str, Any] | None = None,
    **how: Any,
) -> Iterator[Page]:
    """The page, ready, in a browser profile of its own.

    Nothing may fail on its console, nothing may go elsewhere. `before` is a script that runs before
    the page's own; `how` are options of the profile. Answers do not depend on chance.
    """
    context = browser.new_context(**how)
    if before:
        context.add_init_script(before)
    with one_page(context, url) as page:
        use_settings(page, **(settings or {}))
        expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)
        yield page
    context.close()


@contextmanager
def one_page(context: BrowserContext, url: str) -> Iterator[Page]:
    """One more tab."""
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: _note_error(said, faults))
    page.on("request", lambda asked: _note_foreign(asked.url, url, faults))
    page.goto(url)
    yield page
    page.close()
    assert not faults, faults


def _note_error(said: ConsoleMessage, faults: list[str]) -> None:
    # The browser itself writes a line about each answer that is no success.
    if said.type == "error" and not said.text.startswith("Failed to load resource"):
        faults.append(said.text)


def _note_foreign(url: str, own: str, faults: list[str]) -> None:
    if not url.startswith((own, f"blob:{own}")):
        faults.append(f"asked {url}")


def use_settings(page: Page, **settings: float) -> None:
    """As if the user had saved them; answers do not depend on chance."""
    stored = json.dumps({"temperature": 0, **settings})
    page.evaluate(
        "text => { try { localStorage.setItem('splitstack.settings', text) } catch {} }", stored
    )
    page.reload()


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> list[str]:
    return page.locator(".message.assistant .body").all_inner_texts()


def finished(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=ANSWER_MS)


def written(page: Page, characters: int = 20) -> str:
    """The last answer, once it has begun."""
    body = page.locator(".message.assistant .body").last
    page.wait_for_function(
        "([body, least]) => body.innerText.length >= least",
        arg=[body.element_handle(), characters],
        timeout=ANSWER_MS,
    )
    return body.inner_text()


def figure(page: Page, name: str) -> str:
    """One of the pipeline's figures."""
    return page.locator(".figures div", has_text=name).locator("dd").inner_text()


def kept(page: Page) -> list[dict[str, Any]]:
    """The sessions that the browser keeps."""
    found: list[dict[str, Any]] = page.evaluate(
        "Object.keys(localStorage).filter(key => key.startsWith('splitstack.session.'))"
        ".map(key => JSON.parse(localStorage[key]))"
    )
    return found
