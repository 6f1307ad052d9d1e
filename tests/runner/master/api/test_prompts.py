"""The API over the real engine, whose group stands in for the stages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from openai import OpenAI
from starlette.applications import Starlette

from runner.master.engine.engine import Engine
from runner.master.text.model_text import ModelText
from tests.runner.master.engine.stand_in_group import StandInGroup, expected_tokens
from tests.runner.master.serving import MODEL, group_spec, master_app, served, served_engine
from tests.waiting import wait_for
from web.request_id import RequestIdMiddleware

PROMPT = "The capital of France is"


class Stack:
    """An engine on a server's event loop, reached from the test's thread."""

    def __init__(self) -> None:
        self.spec = group_spec(max_concurrent_requests=2)
        self.group = StandInGroup(ranks=1, delay_s=0.005, spec=self.spec)
        self.group.listener = self.engine = Engine(self.group)
        self.loop: asyncio.AbstractEventLoop

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self.loop = asyncio.get_running_loop()
        self.group.form()
        yield


@pytest.fixture
def stack() -> Stack:
    return Stack()


@pytest.fixture
def engine_url(stack: Stack, demo_text: ModelText) -> Iterator[str]:
    with served_engine(stack.engine, demo_text, stack.lifespan) as url:
        wait_for(lambda: stack.engine.ready)
        yield url


def test_text_is_the_text_of_the_engines_tokens(engine_url: str, demo_text: ModelText) -> None:
    body = {"prompt": PROMPT, "max_new_tokens": 60, "seed": 5, "ignore_eos": True}
    prompt_ids = demo_text.encode_prompt(PROMPT)
    tokens = expected_tokens(prompt_ids, 60, 5)
    answer = httpx.post(f"{engine_url}/generate", json=body).json()
    assert answer["output"] == demo_text.decode(tokens)
    assert answer["usage"]["completion_tokens"] == 60


def test_a_lost_group_is_a_pause_in_the_stream(
    engine_url: str, stack: Stack, demo_text: ModelText
) -> None:
    expected = demo_text.decode(expected_tokens(demo_text.encode_prompt(PROMPT), 60, 5))
    with OpenAI(base_url=f"{engine_url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=60,
            seed=5,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text = ""
        for count, chunk in enumerate(stream):
            text += chunk.choices[0].text
            if count == 5:
                stack.loop.call_soon_threadsafe(stack.group.lose)
                stack.loop.call_soon_threadsafe(stack.group.form)
    assert text == expected
    assert stack.engine.statistics().losses == 1


def test_a_client_that_leaves_frees_its_place_in_the_engine(engine_url: str, stack: Stack) -> None:
    stack.group.delay_s = 0.05  # it would be minutes before it ended by itself
    body = {"prompt": PROMPT, "max_new_tokens": 3000, "ignore_eos": True, "enable_streaming": True}
    with httpx.stream("POST", f"{engine_url}/generate", json=body) as response:
        lines = response.iter_lines()  # its end closes the connection
        next(lines)
        assert stack.engine.statistics().running == 1
        assert stack.engine.statistics().kv_tokens_reserved > 0
    wait_for(lambda: stack.engine.statistics().running == 0)
    wait_for(lambda: stack.engine.statistics().kv_tokens_reserved == 0)


def test_a_stop_string_frees_the_place_before_the_answer_is_read(
    engine_url: str, stack: Stack, demo_text: ModelText
) -> None:
    text = demo_text.decode(expected_tokens(demo_text.encode_prompt(PROMPT), 40, 5))
    stop = text[len(text) // 2 :][:4]
    body = {
        "prompt": PROMPT,
        "max_new_tokens": 3000,
        "seed": 5,
        "stop": [stop],
        "ignore_eos": True,
    }
    answer = httpx.post(f"{engine_url}/generate", json=body).json()
    assert answer["output"] == text[: text.index(stop)]
    assert answer["finish_reason"] == "stop"
    assert stack.engine.statistics().running == 0


def test_a_full_engine_answers_429_and_goes_on(engine_url: str, stack: Stack) -> None:
    body = {"prompt": PROMPT, "max_new_tokens": 2000, "ignore_eos": True}
    completion = {"model": MODEL, "prompt": [PROMPT] * 10, "max_tokens": 300}
    with httpx.Client() as client:
        with client.stream(
            "POST",
            f"{engine_url}/v1/completions",
            json={**completion, "stream": True, "ignore_eos": True},
        ) as response:
            lines = response.iter_lines()  # its end closes the connection
            next(lines)
            refused = httpx.post(f"{engine_url}/generate", json=body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "engine_full"
            # No tokens are made of a prompt that has no place: this one would be too long.
            long = "word " * 10_000
            messages = [{"role": "user", "content": long}]
            for path, question in (
                ("/generate", {"prompt": long}),
                ("/v1/completions", {"model": MODEL, "prompt": long}),
                ("/v1/chat/completions", {"model": MODEL, "messages": messages}),
            ):
                assert httpx.post(engine_url + path, json=question).status_code == 429
        wait_for(lambda: stack.engine.statistics().running == 0)
        small = {**body, "max_new_tokens": 3}
        assert client.post(f"{engine_url}/generate", json=small).status_code == 200


def test_a_failed_group_is_a_pause_for_streams_and_503_for_new_requests(
    engine_url: str, stack: Stack
) -> None:
    reason = "3 groups in a row failed"
    body = {"prompt": PROMPT, "max_new_tokens": 60, "ignore_eos": True, "enable_streaming": True}
    with httpx.stream("POST", f"{engine_url}/generate", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        stack.loop.call_soon_threadsafe(stack.group.fail, reason)
        wait_for(lambda: not stack.engine.ready)
        refused = httpx.post(f"{engine_url}/generate", json=body)
        ready = httpx.get(f"{engine_url}/readyz")
        text = httpx.get(f"{engine_url}/metrics").text
        stack.loop.call_soon_threadsafe(stack.group.form)
        rest = list(lines)
    for answer in (refused, ready):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "20")
    assert refused.json()["error"]["message"] == reason
    assert ready.json() == {"ready": False, "state": "failed", "reason": reason}
    assert f'splitstack_group_failed{{model_name="{MODEL}"}} 1.0' in text
    assert "[DONE]" in "".join(rest)
    assert "error" not in "".join(rest)


def test_a_request_that_ends_the_group_is_answered_and_named_by_its_id(
    stack: Stack, demo_text: ModelText, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "A striped zebra"
    stack.group.deadly = {demo_text.encode_prompt(prompt)[-1]}
    # As web.serve has it.
    app = RequestIdMiddleware(master_app(stack.engine, demo_text, stack.lifespan))
    headers = {"X-Request-Id": "the-culprit"}
    with served(app) as url, httpx.Client(base_url=url, headers=headers) as client:
        wait_for(lambda: stack.engine.ready)
        answer = client.post("/generate", json={"prompt": prompt, "max_new_tokens": 5})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "request_ends_the_group"
        assert stack.engine.statistics().losses == 3
        [line] = [item for item in caplog.messages if "ends the group" in item]
        assert "the-culprit" in line
        assert "zebra" not in caplog.text
        answer = client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 3})
        assert answer.status_code == 200


def test_metrics_and_topology_show_the_engine(engine_url: str) -> None:
    text = httpx.get(f"{engine_url}/metrics").text
    assert f'vllm:num_requests_running{{model_name="{MODEL}"}} 0.0' in text
    assert f'splitstack_group_formations_total{{model_name="{MODEL}"}} 1.0' in text
    [rank] = httpx.get(f"{engine_url}/topology").json()["ranks"]
    assert rank["layers"] == [0, 30]
