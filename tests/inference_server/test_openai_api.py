"""Streams are counted in passing, and only what was not asked for is taken out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_server.openai_api import StreamMeter, asks_usage, with_usage

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None})


LAST = event({"choices": [], "usage": USAGE})


@pytest.mark.parametrize("pass_usage", [True, False])
def test_the_usage_chunk_goes_to_whom_asked_for_it(pass_usage: bool) -> None:
    meter = StreamMeter(pass_usage=pass_usage, keep_text=False)
    passed = meter.push(piece("a") + piece("b")) + meter.push(LAST + DONE)
    assert passed == piece("a") + piece("b") + (LAST if pass_usage else b"") + DONE
    assert (meter.prompt_tokens, meter.completion_tokens) == (7, 2)
    assert meter.done
    assert meter.error is None
    assert meter.text is None


@pytest.mark.parametrize("pass_usage", [True, False])
def test_usage_in_each_chunk_is_passed_and_counted(pass_usage: bool) -> None:
    meter = StreamMeter(pass_usage=pass_usage, keep_text=False)
    choice = {"index": 0, "delta": {"content": "a"}}
    so_far = [{**USAGE, "completion_tokens": tokens} for tokens in (1, 2)]
    events = b"".join(event({"choices": [choice], "usage": usage}) for usage in so_far)
    assert meter.push(events) == events
    assert (meter.prompt_tokens, meter.completion_tokens) == (7, 2)


def test_text_that_looks_like_usage_is_passed_on() -> None:
    meter = StreamMeter(pass_usage=False, keep_text=False)
    events = piece('{"choices": [], "usage": {"prompt_tokens": 1}}') + piece("x\n\n")
    assert meter.push(events) == events
    assert meter.prompt_tokens is None


def test_a_stream_that_breaks_off_is_counted_by_its_events() -> None:
    meter = StreamMeter(pass_usage=False, keep_text=True)
    events = piece("a") + piece("b") + event({"error": {"message": "x"}})
    assert meter.push(events) == events
    assert meter.error == {"error": {"message": "x"}}
    assert not meter.done
    assert meter.completion_tokens == 2
    assert meter.text == "ab"


def test_usage_is_asked_for_where_that_can_be() -> None:
    assert with_usage({"stream": True})["stream_options"] == {"include_usage": True}
    asked = {"stream": True, "stream_options": {"include_usage": False, "other": 1}}
    assert with_usage(asked)["stream_options"] == {"include_usage": True, "other": 1}
    assert not asks_usage(asked)
    documents: list[dict[str, Any]] = [{}, {"stream": False}, {"stream": 1}]
    for document in [*documents, {"stream": True, "stream_options": 3}]:
        assert with_usage(document) == document


def test_comments_and_texts_that_look_like_events_are_not_counted() -> None:
    meter = StreamMeter(pass_usage=False, keep_text=True)
    comments = b": keep-alive\n\n: data: [DONE]\n\n"
    assert meter.push(b"") == b""
    assert meter.push(comments) == comments
    assert not meter.begun
    events = piece("data: [DONE]") + comments + piece('data: {"error"')
    assert meter.push(events) == events
    assert (meter.begun, meter.done, meter.error) == (True, False, None)
    assert meter.completion_tokens == 2
    assert meter.push(comments + LAST + comments + DONE) == comments + comments + DONE
    assert (meter.completion_tokens, meter.done) == (2, True)


def test_an_error_that_comes_first_is_no_token() -> None:
    meter = StreamMeter(pass_usage=False, keep_text=False)
    error = {"error": {"message": "x", "code": "not_serving"}}
    meter.push(b": keep-alive\n\n" + event(error))
    assert (meter.error, meter.begun, meter.completion_tokens) == (error, False, 0)
