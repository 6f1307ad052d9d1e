"""The pipeline on the web page: what is drawn is what is so now, or is said to be old."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.browser_page import (
    ANSWER_MS,
    LONG,
    RECOVERY_MS,
    answers,
    ask,
    figure,
    finished,
    use_settings,
    written,
)
from tests.e2e.local_stack import LocalStack
from tests.programs import needs
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.slow, needs("chromium")]
# What the page shows in the moment in which `condition` is first true.
_SHOWN = """() => (%s) && {
    state: document.getElementById("group-state").textContent,
    speed: document.getElementById("speed").textContent,
    now: [...document.querySelectorAll("#figures-now dd")].map(one => one.textContent),
    ranks: [...document.querySelectorAll(".rank")].map(one => one.innerText),
}"""
UNKNOWN = "\N{EN DASH}"


def shown_when(page: Page, condition: str) -> dict[str, Any]:
    handle = page.wait_for_function(_SHOWN % condition, timeout=PATIENCE_S * 1000, polling="raf")
    found: dict[str, Any] = handle.json_value()
    return found


def draw(page: Page, local_stack: LocalStack, change: Callable[[dict[str, Any]], Any]) -> None:
    """The real topology with a change, and no news after it."""
    master = local_stack.processes()["master"]["url"]
    topology = httpx.get(f"{master}/topology").json()
    change(topology)
    event = f"data: {json.dumps({'block_id': 'b', 'topology': topology})}\n\n"
    # The browser gives the page what a stream has brought only when it ends.
    page.add_init_script(
        "const fetched = fetch; window.fetch = (path, how) => !path.startsWith('/v1/events')"
        " ? fetched(path, how) : Promise.resolve(new Response(new ReadableStream({start(told) {"
        f"told.enqueue(new TextEncoder().encode({json.dumps(event)}));}}}})));"
    )
    page.reload()
    expect(page.locator(".rank").first).to_be_visible()


def test_a_killed_stage_is_seen_and_comes_back(page: Page, local_stack: LocalStack) -> None:
    use_settings(page)
    ask(page, LONG)
    written(page)
    before = figure(page, "Epoch")
    local_stack.kill("stage-1")
    box = 'document.querySelectorAll(".rank")[1]'
    gone = shown_when(page, f'{box}.dataset.state === "absent"')["ranks"][1]
    assert ("gone" in gone) != ("loading" in gone)
    assert "ms" not in gone
    assert "MB" not in gone
    expect(page.locator("#group-reason")).to_contain_text("rank 1")
    expect(page.locator(".pause")).to_contain_text("goes on by itself")
    early = answers(page)[0]
    expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)
    expect(page.locator(".rank").nth(1)).to_contain_text("restarted once")
    last = page.locator("#event-list li").first
    expect(last).to_contain_text(re.compile(r"rank 1 killed, back after \d+\.\d s"))
    body = page.locator(".message.assistant .body")
    expect(body).not_to_have_text(early, timeout=ANSWER_MS)
    assert answers(page)[0].startswith(early.removesuffix("\n"))
    assert int(figure(page, "Epoch")) > int(before)
    page.get_by_role("button", name="Stop").click()
    finished(page)


@pytest.mark.parametrize("process", ["inference-server", "master"])
def test_without_news_nothing_old_is_shown_as_new(
    page: Page, local_stack: LocalStack, process: str
) -> None:
    use_settings(page)
    ask(page, LONG)
    written(page)
    local_stack.kill(process)
    lost = shown_when(page, 'document.getElementById("group-state").dataset.state === "none"')
    assert lost["state"] == "no connection"
    assert lost["speed"] == UNKNOWN
    assert set(lost["now"]) == {UNKNOWN}
    assert not any(re.search(r"\d (ms|MB|%)", text) for text in lost["ranks"])
    if process == "master":  # the proxy block carries the answer over its death
        expect(page.locator(".pause")).to_contain_text("No news of the pipeline")
        early = answers(page)[0]
    expect(page.locator("#group-state")).to_have_text("ready", timeout=RECOVERY_MS)
    expect(page.locator("#speed")).not_to_have_text(UNKNOWN)
    if process == "master":
        body = page.locator(".message.assistant .body")
        expect(body).not_to_have_text(early, timeout=ANSWER_MS)
        expect(page.locator(".pause")).to_have_count(0)
        assert answers(page)[0].startswith(early.removesuffix("\n"))
    page.keyboard.press("Escape")
    finished(page)


def test_a_silent_feed_is_no_news(page: Page, local_stack: LocalStack) -> None:
    draw(page, local_stack, lambda topology: topology)
    lost = shown_when(page, 'document.getElementById("group-state").dataset.state === "none"')
    expect(page.locator("#group-reason")).to_contain_text("has told nothing for")
    assert lost["speed"] == UNKNOWN


def test_the_boxes_say_what_each_rank_holds(page: Page) -> None:
    ask(page, "What is two plus two?")
    finished(page)
    first, second = page.locator(".rank").all()
    expect(first).to_contain_text(re.compile(r"layers 0 to \d+"))
    expect(second).to_contain_text(re.compile(r"layers \d+ to 29"))
    expect(first).to_contain_text(re.compile(r"\d+\.\d MB weights"))
    expect(first).to_contain_text("ms a step")
    expect(first).to_contain_text("% waiting")


def test_figures_explain_themselves(page: Page, local_stack: LocalStack) -> None:
    busy = {"requests_running": 1, "kv_tokens_used": 1200, "kv_tokens_reserved": 4096}
    draw(page, local_stack, lambda topology: topology.update(busy, kv_tokens=131072))
    expect(page.locator("#figures-now")).to_contain_text("one request uses one rank at a time")
    assert "Bubbles" not in page.locator("#figures-now").inner_text()
    assert figure(page, "KV cache") == "1,200 used, 4,096 reserved of 131,072 tokens"
    titled = page.locator(".figures div[title]")
    assert titled.count() == page.locator(".figures div").count() == 8
    assert page.locator("#figures-since dt").all_inner_texts() == ["Restarts", "Replays", "Epoch"]
    expect(page.locator(".axis")).to_have_text("1 min ago30 snow")
    expect(page.locator("#speed-most")).to_have_text("10 tokens/s")


def test_a_new_master_that_knows_nothing_yet_counts_nothing(
    page: Page, local_stack: LocalStack
) -> None:
    """Until a rank has told it of the lives before its own."""
    draw(page, local_stack, lambda topology: topology.update(epoch=None, requests_running=0))
    expect(page.locator("#group-state")).to_have_text("ready")
    assert page.locator("#figures-since dd").all_inner_texts() == [UNKNOWN] * 3
    assert figure(page, "Running") == figure(page, "Micro-batches") == "0"
    assert figure(page, "Bubbles") == UNKNOWN


def test_several_micro_batches_have_bubbles(page: Page, local_stack: LocalStack) -> None:
    def busy(topology: dict[str, Any]) -> None:
        topology.update(requests_running=4, micro_batches=2)
        for rank in topology["ranks"]:
            rank["bubble_ratio"] = 0.25

    draw(page, local_stack, busy)
    assert figure(page, "Bubbles") == "25 %"


def test_the_last_events_are_told(page: Page, local_stack: LocalStack) -> None:
    texts = [f"rank 1 killed, back after {number}.2 s" for number in range(6)]
    told: list[dict[str, Any]] = [
        {"at": 1e9 + number, "kind": "rank", "rank": 1, "text": text, "duration_s": number + 0.2}
        for number, text in enumerate(texts)
    ]
    told.append(
        {"at": 1.1e9, "kind": "rank", "rank": 0, "text": "<b>rank</b> 0 gone", "duration_s": None}
    )
    draw(page, local_stack, lambda topology: topology.update(events=told))
    shown = page.locator("#event-list li")
    expect(shown.locator("span")).to_have_text(["<b>rank</b> 0 gone", *texts[:1:-1]])
    expect(shown.first.locator("time")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    expect(shown.first).to_have_attribute("data-over", "false")
