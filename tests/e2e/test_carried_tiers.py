"""What is behind a client's connection is killed, stopped or cut off under requests: a pause alone.

Texts, usage and the request log are those of undisturbed answers; turns are recorded once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from contract.carry import ASKS_FOR_IDS, HEADER
from tests.e2e.carried_stack import BLOCK, CarriedStack
from tests.e2e.random_model import save_random_model
from tests.e2e.seen import NEW_TOKENS, Seen, asked
from tests.lanes import each_value
from tests.programs import needs
from tests.web.tier_process import TierProcess
from tests.without_reuse import without_reuse

pytestmark = [pytest.mark.slow, needs("redis-server")]

CHAT = {"model": BLOCK, "messages": [{"role": "user", "content": "Write one odd sentence."}]}
PROMPT = {"model": BLOCK, "prompt": "A river begins in"}
USAGE = {"stream_options": {"include_usage": True}}
ASKED: list[dict[str, Any]] = [
    {**PROMPT, "temperature": 0, "stream": True, **USAGE},
    {**PROMPT, "seed": 5, "n": 2, "stream": True, **USAGE},
    {**CHAT, "seed": 7, "temperature": 1.3, "frequency_penalty": 1.5, "stream": True, **USAGE},
    {**CHAT, "seed": 8, "top_p": 0.9, "n": 2},
    {**CHAT, "temperature": 0},
]
# Longer than the heartbeats between the ranks and than the far tiers allow.
STOPPED_S = 3.5
UNSEEDED: list[dict[str, Any]] = [
    {**CHAT, "temperature": 1.1, "n": 2, "stream": True, **USAGE},
    {**PROMPT, "temperature": 0.8, "stream": True, **USAGE},
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CarriedStack]:
    model = save_random_model(tmp_path_factory.mktemp("model"), 2)
    with ExitStack() as ending:
        yield CarriedStack(tmp_path_factory.mktemp("stack"), model, ending)


@pytest.fixture(scope="module")
def expected(stack: CarriedStack) -> list[Seen]:
    found = asked(stack.server.url, ASKED)
    assert len({text for one in found for text in one.texts.values()}) == 7
    return found


def assert_counted(server: TierProcess, found: list[Seen]) -> None:
    """Usage and the request log have every token once."""
    for one in found:
        assert one.usage is not None
        assert one.usage["completion_tokens"] == NEW_TOKENS * len(one.texts)
        [row] = httpx.get(f"{server.url}/logs/request/{one.request_id}").json()["data"]
        assert (row["outcome"], row["completion_tokens"]) == ("ok", one.usage["completion_tokens"])


@pytest.mark.parametrize("lost", ["master", "proxy", "both", "all"])
def test_openais_answers_go_on(stack: CarriedStack, expected: list[Seen], lost: str) -> None:
    found = asked(stack.server.url, ASKED, getattr(stack, f"lose_{lost}"))
    assert found == expected
    assert_counted(stack.server, found)


def test_unseeded_answers_go_on_with_the_seed_that_was_told(stack: CarriedStack) -> None:
    # Whoever carries is told the seed.
    headers = {HEADER: ASKS_FOR_IDS}
    found = asked(stack.proxies[0].url, UNSEEDED, stack.lose_master, headers)
    seeds = [one.beginning.seed for one in found if one.beginning is not None]
    assert asked(stack.server.url, with_seeds(seeds)) == found


def with_seeds(seeds: list[int]) -> list[dict[str, Any]]:
    return [body | {"seed": seed} for body, seed in zip(UNSEEDED, seeds, strict=True)]


@pytest.mark.parametrize(("link", "how"), each_value(["front", "master"], ["cut", "stall"]))
def test_a_lost_connection_is_a_pause(
    stack: CarriedStack, expected: list[Seen], link: str, how: str
) -> None:
    def fault() -> None:
        assert getattr(stack.links[link], how)() >= len(ASKED)

    assert_undisturbed(stack, expected, fault)


@pytest.mark.parametrize(
    ("who", "then"), each_value(["master", "proxy", "stage"], [signal.SIGCONT, signal.SIGKILL])
)
def test_a_stopped_process_is_a_pause(
    stack: CarriedStack, expected: list[Seen], who: str, then: signal.Signals
) -> None:
    """It goes on after it was taken for lost, or is killed for not answering."""

    def fault() -> None:
        stack.stop(who, STOPPED_S, then)

    assert_undisturbed(stack, expected, fault)


def assert_undisturbed(
    stack: CarriedStack, expected: list[Seen], fault: Callable[[], None]
) -> None:
    """Greedy, seeded and unseeded answers by the server whose network can be cut."""
    found = asked(stack.far_server.url, ASKED + UNSEEDED, fault)
    assert found[: len(ASKED)] == expected
    assert_counted(stack.far_server, found)
    unseeded = found[len(ASKED) :]
    seeds = [stack.told_seed(*one.ids) for one in unseeded]
    assert asked(stack.server.url, with_seeds(seeds)) == unseeded


def turn(server: TierProcess, session_id: str, seq_no: int) -> httpx.Response:
    config = {"max_new_tokens": 150, "do_sample": False}
    data = {"message": f"Turn {seq_no}: go on.", "generation_config": config}
    body = {"model": BLOCK, "session_id": session_id, "seq_no": seq_no, "data": data}
    return httpx.post(f"{server.url}/v1/infer", json=body, timeout=180)


def told(answer: httpx.Response) -> Any:
    return without_reuse(answer.json()["data"])


@pytest.fixture(scope="module")
def said(stack: CarriedStack) -> list[Any]:
    """Three undisturbed turns."""
    return [told(turn(stack.server, "calm", number)) for number in (1, 2, 3)]


def assert_a_turn_goes_on(
    stack: CarriedStack, server: TierProcess, said: list[Any], name: str, fault: Callable[[], None]
) -> None:
    session_id = f"lost-{name}"
    found = [told(turn(server, session_id, 1))]
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(turn, server, session_id, 2)
        stack.wait_running()
        fault()
        answer = asking.result()
    assert answer.status_code == 200, answer.text
    found.append(told(answer))
    # Asked again it is the recorded one; its history is in the next one's prompt, once.
    assert told(turn(server, session_id, 2)) == found[-1]
    found.append(told(turn(server, session_id, 3)))
    assert found == said


@pytest.mark.parametrize("lost", ["master", "proxy", "both", "store"])
def test_turns_of_sessions_go_on_and_are_recorded_once(
    stack: CarriedStack, said: list[Any], lost: str
) -> None:
    assert_a_turn_goes_on(stack, stack.server, said, lost, getattr(stack, f"lose_{lost}"))


@pytest.mark.parametrize(
    ("link", "how"),
    [
        ("front", "cut"),
        ("store", "stall"),
        pytest.param("store", "cut", marks=pytest.mark.long),
        pytest.param("master", "stall", marks=pytest.mark.long),
    ],
)
def test_turns_go_on_over_lost_connections(
    stack: CarriedStack, said: list[Any], link: str, how: str
) -> None:
    def fault() -> None:
        assert getattr(stack.links[link], how)()

    assert_a_turn_goes_on(stack, stack.far_server, said, f"{link}-{how}", fault)
