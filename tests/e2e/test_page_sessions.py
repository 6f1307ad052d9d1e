"""What the web page keeps: nothing is lost without a word, and nothing of it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser_page import (
    ANSWER_MS,
    LONG,
    RECOVERY_MS,
    answers,
    ask,
    finished,
    kept,
    one_page,
    open_page,
    use_settings,
    written,
)
from tests.e2e.local_stack import LocalStack
from tests.programs import needs

pytestmark = [pytest.mark.slow, needs("chromium")]
FORBIDDEN = """for (const area of ["localStorage", "sessionStorage"]) Object.defineProperty(
    window, area, {get() { throw new DOMException("denied", "SecurityError"); }});"""
FILL = """for (let size = 2 ** 22; size; size >>= 1) {
    for (let part = 0; part < 8; part++) {
        try { localStorage.setItem(`filler-${size}-${part}`, "x".repeat(size)); } catch { break; }
    }
}"""


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
    assert kept(page) == []


def test_sessions_are_renamed_found_and_taken_away(page: Page, tmp_path: Path) -> None:
    ask(page, "What is two plus two?")
    finished(page)
    page.locator("#session-menu summary").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill("Sums <b>of</b> mine")
    page.keyboard.press("Enter")
    expect(page.locator("#session-title")).to_have_text("Sums <b>of</b> mine")
    page.locator("#new-session").click()
    ask(page, "What is the capital of Spain?")
    finished(page)
    titles = page.locator("#session-list .open")
    expect(titles).to_have_text(["What is the capital of Spain?", "Sums <b>of</b> mine"])
    for wanted in ("sums", "two plus"):
        page.get_by_label("Search sessions").fill(wanted)
        expect(titles).to_have_text(["Sums <b>of</b> mine"])
    page.get_by_label("Search sessions").fill("nobody said this")
    expect(page.locator("#none-found")).to_be_visible()
    with page.expect_download() as taken:
        page.get_by_role("button", name="Export all sessions").click()
    file = tmp_path / "sessions.json"
    taken.value.save_as(file)
    found = json.loads(file.read_text("utf-8"))
    assert [session["title"] for session in found] == [
        "What is the capital of Spain?",
        "Sums <b>of</b> mine",
    ]
    assert [message["role"] for message in found[0]["messages"]] == ["user", "assistant"]


def test_a_reload_keeps_what_had_come(page: Page) -> None:
    use_settings(page)
    ask(page, LONG)
    early = written(page)
    page.reload()
    assert answers(page)[0].startswith(early)
    mark = page.locator(".fault")
    expect(mark).to_contain_text("Cut: the page was closed or loaded anew")
    expect(mark).to_contain_text("the model reads it as part of the conversation")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Again").click()
    assert [m["content"] for m in asked.value.post_data_json["messages"]] == [LONG]  # type: ignore[index]
    written(page)
    expect(mark).to_have_count(0)


def test_a_browser_that_dies_has_kept_what_had_come(page: Page, local_stack: LocalStack) -> None:
    """Kept as it comes: nothing tells this page that it ends."""
    use_settings(page)
    ask(page, LONG)
    early = written(page, 40)
    page.wait_for_timeout(1500)
    stored = kept(page)
    assert stored[0]["messages"][1]["content"].startswith(early)
    with one_page(page.context, local_stack.url) as other:
        text = json.dumps(stored[0] | {"id": "of-the-dead", "title": "Of the dead"}).replace(
            stored[0]["messages"][1]["writing"], "a-tab-that-is-gone"
        )
        other.evaluate("text => localStorage['splitstack.session.of-the-dead'] = text", text)
        page.keyboard.press("Escape")
        finished(page)
        other.reload()
        other.get_by_role("button", name="Of the dead", exact=True).click()
        expect(other.locator(".fault")).to_contain_text("Cut: the page was closed")


def test_a_cut_answer_stays_marked(page: Page, local_stack: LocalStack) -> None:
    use_settings(page)
    ask(page, LONG)
    written(page)
    local_stack.kill("inference-server")
    mark = page.locator(".fault")
    expect(mark).to_contain_text("Cut: The connection to the server was lost.")
    cut = kept(page)[0]["messages"][1]["content"]
    expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)
    use_settings(page, max_completion_tokens=8)
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Go on.")
    said = [message["content"] for message in asked.value.post_data_json["messages"]]  # type: ignore[index]
    assert said == [LONG, cut, "Go on."]
    finished(page)
    expect(mark).to_have_count(1)
    page.reload()
    expect(mark).to_have_count(1)


def test_two_tabs_lose_nothing_of_one_session(page: Page, local_stack: LocalStack) -> None:
    ask(page, "What is two plus two?")
    finished(page)
    with one_page(page.context, local_stack.url) as other:
        use_settings(page)
        ask(page, LONG)
        written(page)
        expect(other.locator("#messages")).to_contain_text("Another tab is writing this answer.")
        ask(other, "And I?")
        expect(other.locator("#waiting")).to_contain_text("Another tab is answering")
        expect(other.get_by_label("Message", exact=True)).to_have_value("And I?")
        page.keyboard.press("Escape")
        finished(page)
        expect(other.locator("#waiting")).to_be_hidden()
        assert answers(other) == answers(page)
        other.get_by_label("Message", exact=True).press("Enter")
        written(other, 1)
        expect(other.get_by_role("button", name="Stop")).to_be_visible()
        other.keyboard.press("Escape")
        finished(other)
        expect(page.locator(".message")).to_have_count(6)
        assert [len(session["messages"]) for session in kept(page)] == [6]


def test_a_duplicated_tab_is_another_tab(page: Page) -> None:
    """It begins with all that the first one keeps, what belongs to the tab alone too."""
    use_settings(page)
    ask(page, LONG)
    written(page)
    with page.expect_popup() as opened:
        page.evaluate("window.open(location.href)")
    other = opened.value
    expect(other.locator("#messages")).to_contain_text("Another tab is writing this answer.")
    other.close()
    page.keyboard.press("Escape")
    finished(page)
    expect(page.locator(".fault")).to_have_count(0)


def test_deleting_another_session_leaves_the_answer_alone(page: Page) -> None:
    ask(page, "What is two plus two?")
    finished(page)
    use_settings(page)
    page.locator("#new-session").click()
    ask(page, LONG)
    early = written(page)
    page.get_by_role("button", name="Delete What is two plus two?").click()
    expect(page.locator(".message.assistant .body")).not_to_have_text(early)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    finished(page)
    assert len(kept(page)) == 1


def test_a_full_browser_says_so_and_loses_nothing_older(page: Page) -> None:
    ask(page, "What is two plus two?")
    finished(page)
    before = kept(page)
    page.evaluate(FILL)
    page.locator("#new-session").click()
    ask(page, "What is the capital of France? " + "Think well. " * 40)
    expect(page.locator("#unkept")).to_contain_text("no room left")
    finished(page)
    assert len(answers(page)) == 1
    assert kept(page) == before
    page.evaluate(
        "for (const key of Object.keys(localStorage)) if (key.startsWith('filler')) "
        "localStorage.removeItem(key)"
    )
    ask(page, "And of Spain?")
    finished(page)
    expect(page.locator("#unkept")).to_be_hidden()
    assert sorted(len(session["messages"]) for session in kept(page)) == [2, 4]


def test_a_browser_that_keeps_nothing_says_so_and_chats(
    browser: Browser, local_stack: LocalStack
) -> None:
    with open_page(browser, local_stack.url, before=FORBIDDEN) as page:
        expect(page.locator("#unkept")).to_contain_text("lets the page keep nothing")
        ask(page, "What is the capital of France?")
        finished(page)
        (answer,) = answers(page)
        assert answer
        page.locator("#new-session").click()
        page.locator("#session-list .open", has_text="France").click()
        assert answers(page) == [answer]


def test_a_pasted_megabyte_is_refused_and_given_back(page: Page) -> None:
    pasted = "word " * 200_000
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.insert_text(pasted)
    page.keyboard.press("Enter")
    alert = page.locator(".fault")
    expect(alert).to_contain_text("4096", timeout=ANSWER_MS)
    page.get_by_role("button", name="Show all 999,999 characters").click()
    assert page.locator(".message.user .body").inner_text() == pasted.strip()
    page.reload()
    expect(alert).to_contain_text("4096")
    page.get_by_role("button", name="Edit the question").click()
    assert page.get_by_label("Message", exact=True).input_value() == pasted.strip()


def test_markup_stays_text(page: Page) -> None:
    """In answers, thoughts, questions, titles and faults; as an earlier page kept them."""
    evil = "<img src=x onerror='window.ran = true'><script>window.ran = true</script>"
    answer = f"{evil} **b** `c`\n```html\n<script>alert(1)</script>\n```"
    messages = [
        {"role": "user", "content": evil},
        {"role": "assistant", "content": answer, "thinking": evil, "cut": evil, "request_id": evil},
    ]
    stored = json.dumps(
        [{"id": "1", "messages": messages}, {"id": "2", "title": evil, "messages": messages}]
    )
    page.evaluate("text => localStorage.setItem('splitstack.sessions', text)", stored)
    page.reload()
    body = page.locator(".message.assistant .body")
    expect(body).to_contain_text(f"{evil} b c")
    expect(body.locator("strong")).to_have_text("b")
    expect(body.locator("pre")).to_have_text("<script>alert(1)</script>")
    expect(page.locator("#session-title")).to_have_text(evil)
    expect(page.locator("#session-list .open")).to_have_text([evil, evil])
    assert page.locator("main img, nav img, main script, nav script").count() == 0
    assert page.evaluate("window.ran") is None
    assert page.evaluate("localStorage.getItem('splitstack.sessions')") is None
