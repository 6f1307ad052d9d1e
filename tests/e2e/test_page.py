"""The web page: questions, answers and settings, in a real browser before the real stack."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from contract.models import DEMO_TITLE
from contract.version import VERSION
from tests.e2e.browser_page import (
    ANSWER_MS,
    BLOCK,
    LONG,
    answers,
    ask,
    finished,
    open_page,
    use_settings,
    written,
)
from tests.e2e.local_stack import LocalStack
from tests.programs import needs

pytestmark = [pytest.mark.slow, needs("chromium")]
# What the page offers to ask the demo model, and a part of each right answer.
OFFERED = {
    "What is the largest ocean on Earth?": "pacific",
    "What is photosynthesis?": "light",
    "Give me three tips for sleeping well.": "sleep",
}


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
    early = written(page)
    expect(page.locator(".message.assistant .body")).not_to_have_text(early)
    page.keyboard.press("Escape")
    finished(page)
    expect(page.locator(".message.assistant .meta")).to_contain_text("stopped")
    running = page.locator(".figures div", has_text="Running").locator("dd")
    expect(running).to_have_text("0")


def test_it_says_which_model_answers(page: Page) -> None:
    expect(page.locator("#block option:checked")).to_have_text(DEMO_TITLE)
    expect(page.locator("#block-note")).to_have_text(f"{BLOCK} · context 4,096")
    expect(page.locator("#welcome")).to_contain_text("tiny demo model")
    expect(page.locator("#welcome")).to_contain_text("Watch it at work beside the conversation.")
    expect(page.locator("#version")).to_have_text(f"Splitstack {VERSION}")


def test_what_it_offers_to_ask_is_answered_sensibly(
    browser: Browser, local_stack: LocalStack
) -> None:
    """With the demo stack's own temperature, as a visitor does."""
    with open_page(browser, local_stack.url) as page:
        page.evaluate("localStorage['splitstack.settings'] = '{\"max_completion_tokens\": 40}'")
        page.reload()
        expect(page.locator("#suggestions button")).to_have_text(list(OFFERED))
        for offered, part in OFFERED.items():
            page.locator("#new-session").click()
            page.get_by_role("button", name=offered).click()
            written(page, 5)
            finished(page)
            assert part in answers(page)[0].lower()


def test_settings_go_into_the_request(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System message").fill("Answer with one word.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Max tokens").fill("3")
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


def test_settings_show_what_is_in_force(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    shown = {
        name: page.get_by_label(name).get_attribute("placeholder")
        for name in ("Temperature", "Repetition penalty", "Top p", "Top k", "Max tokens", "Seed")
    }
    assert list(shown.values()) == ["0.3", "1.1", "1", "all", "up to 4,096", "drawn"]
    page.get_by_label("Max tokens").fill("4097")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()


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
    use_settings(page, max_completion_tokens=36000)
    ask(page, "hello")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("max_completion_tokens")
    expect(alert).to_contain_text("request ")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.get_by_role("button", name="Edit the question").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("hello")
    expect(page.locator(".message")).to_have_count(0)


def test_the_request_can_be_taken_to_a_terminal_and_to_python(page: Page) -> None:
    """It is run as it was copied, and gives the same answer."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("sessionStorage.setItem('splitstack.key', 'a-secret-key')")
    use_settings(page, max_completion_tokens=8, repetition_penalty=1.2)
    page.get_by_label("Message", exact=True).fill('What\'s the "capital" of $FRANCE?\n`ls`')
    curl, python = _copied(page, "Copy as curl"), _copied(page, "Copy as Python")
    assert "a-secret-key" not in curl + python
    environment = {"API_KEY": "any", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        ["bash", "-c", curl], env=environment, capture_output=True, check=True, timeout=60
    )
    answer = json.loads(ran.stdout)["choices"][0]["message"]["content"]
    assert 'Bearer $API_KEY"' in curl
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setenv("API_KEY", "any")
        exec(python, {})
    assert said.getvalue().strip() == answer.strip()


def _copied(page: Page, name: str) -> str:
    page.locator("#session-menu summary").click()
    page.get_by_role("button", name=name).click()
    expect(page.locator(".menu-items")).to_contain_text("Copied")
    page.keyboard.press("Escape")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_the_request_log_is_there(page: Page) -> None:
    ask(page, "What is two plus two?")
    finished(page)
    page.get_by_role("button", name="Request log").click()
    expect(page.locator("#log-rows tr").first).to_contain_text("ok")
    for name in ("API description", "Metrics"):
        path = page.get_by_role("link", name=name).get_attribute("href")
        assert page.request.get(f"{page.url.rstrip('/')}{path}").ok


def test_thinking_is_folded_above_the_answer(page: Page) -> None:
    """In chunks as a model that thinks sends them; the stack's own model does not."""
    deltas = [{"reasoning_content": "Let me <b>see</b>."}, {"content": "Paris."}]
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=events, content_type="text/event-stream"),
    )
    ask(page, "What is the capital of France?")
    thought = page.locator(".thought")
    expect(page.locator(".message.assistant .body")).to_have_text("Paris.")
    expect(thought).to_be_hidden()
    page.reload()
    page.get_by_text("Thinking", exact=True).click()
    expect(thought).to_have_text("Let me <b>see</b>.")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "And of Italy?")
    assert "see" not in json.dumps(asked.value.post_data_json)
