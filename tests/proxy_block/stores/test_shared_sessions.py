"""Two replicas on one real redis-server, and what they do when it is gone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from contract.carry import AGAIN_HEADER
from contract.specs import ProxySpec, SessionsSpec
from proxy_block.stores.redis import ANSWER_TIMEOUT_S
from tests.programs import needs
from tests.proxy_block.stores.redis_server import RedisServer
from tests.waiting import wait_for
from tests.web.small_upstream import DEPLOYMENT, SmallUpstream
from tests.web.tier_process import TierProcess

pytestmark = needs("redis-server")
PASSWORD = "secret of the store"


@pytest.fixture(scope="module")
def upstream() -> Iterator[SmallUpstream]:
    with SmallUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def redis_server(folder: Path) -> Iterator[RedisServer]:
    with RedisServer(folder, PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def shared_spec(upstream: SmallUpstream, redis_server: RedisServer) -> ProxySpec:
    sessions = SessionsSpec(url=redis_server.url)
    return ProxySpec("block-1", DEPLOYMENT, upstream.url, sessions=sessions, system_message="be")


@pytest.fixture(scope="module")
def pair(shared_spec: ProxySpec, folder: Path) -> Iterator[list[TierProcess]]:
    """Two that no test ends."""
    with ExitStack() as stack:
        yield [stack.enter_context(replica(shared_spec, folder)) for _ in range(2)]


@pytest.fixture
def replicas(pair: list[TierProcess], upstream: SmallUpstream) -> list[TierProcess]:
    """They know no session, and the upstream has not been asked."""
    httpx.post(f"{pair[0].url}/management", json={"action": "reset"})
    upstream.requests.clear()
    upstream.held, upstream.most_in_flight = None, 0
    return pair


@pytest.fixture
def mortal(
    replicas: list[TierProcess], shared_spec: ProxySpec, folder: Path
) -> Iterator[TierProcess]:
    """One more, which a test may end."""
    with replica(shared_spec, folder) as process:
        yield process


def replica(spec: ProxySpec, folder: Path, password: str = PASSWORD) -> TierProcess:
    password_file = folder / "session_store_password"
    password_file.write_text(f"{password}\n")
    options = ("--session-password-file", str(password_file))
    return TierProcess("proxy_block", spec, folder, None, *options)


def ask(
    proxy: TierProcess, message: str, seq_no: int, headers: dict[str, str] | None = None
) -> httpx.Response:
    body = {"session_id": "s", "seq_no": seq_no, "data": {"message": message}}
    return httpx.post(f"{proxy.url}/infer", json=body, headers=headers)


def test_a_session_goes_on_at_another_replica(
    replicas: list[TierProcess], mortal: TierProcess, upstream: SmallUpstream
) -> None:
    first, second = mortal, replicas[1]
    answer = ask(first, "one", 1).json()
    assert ask(second, "one", 1).json() == answer
    assert ask(second, "two", 2).json()["data"]["reply"] == "4 messages: two"
    assert ask(first, "one", 1).status_code == 409
    first.process.kill()
    assert ask(second, "three", 3).json()["data"]["reply"] == "6 messages: three"
    reset = httpx.post(f"{second.url}/management", json={"action": "reset"})
    assert reset.json()["data"] == {"sessions_reset": 1}
    assert ask(second, "anew", 1).json()["data"]["reply"] == "2 messages: anew"
    assert len(upstream.requests) == 4


def test_replicas_serve_a_session_one_request_at_a_time(
    replicas: list[TierProcess], upstream: SmallUpstream
) -> None:
    def same(number: int) -> str:
        return ask(replicas[number % 2], "slow", 1).text

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(same, range(6)))) == 1
    assert (len(upstream.requests), upstream.most_in_flight) == (1, 1)

    def rising(number: int) -> int:
        return ask(replicas[number % 2], "slow", 2 + number).status_code

    with ThreadPoolExecutor(6) as threads:
        statuses = list(threads.map(rising, range(6)))
    assert set(statuses) <= {200, 409}
    assert upstream.most_in_flight == 1
    replies = ask(replicas[0], "last", 99).json()["data"]["reply"]
    assert replies == f"{2 + 2 * (1 + statuses.count(200))} messages: last"


def test_blocks_on_one_store_do_not_share_sessions(
    replicas: list[TierProcess], shared_spec: ProxySpec, folder: Path
) -> None:
    other, first = dataclasses.replace(shared_spec, block_id="block-2"), replicas[0]
    with replica(other, folder) as second:
        ask(first, "one", 5)
        assert ask(second, "two", 1).json()["data"]["reply"] == "2 messages: two"
        httpx.post(f"{second.url}/management", json={"action": "reset"})
        assert ask(first, "three", 6).json()["data"]["reply"] == "4 messages: three"


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_store_that_stays_lost_is_a_clear_503_and_no_half_written_turn(
    replicas: list[TierProcess], redis_server: RedisServer, upstream: SmallUpstream, how: str
) -> None:
    proxy = replicas[0]
    ask(proxy, "one", 1)
    getattr(redis_server, how)()
    began = time.monotonic()
    # A store that is paused is given up after two tries.
    limit_s = 2 * ANSWER_TIMEOUT_S + 1 if how == "pause" else 2
    refused = ask(proxy, "two", 2, {"X-Request-Timeout": f"{limit_s:g}"})
    assert time.monotonic() - began > limit_s - 0.5
    assert refused.status_code == 503
    error = refused.json()["error"]
    assert error["code"] == "session_store_unavailable"
    assert redis_server.url in error["message"]
    assert refused.headers["retry-after"] == "1"
    assert PASSWORD not in refused.text + proxy.errors()
    assert len(upstream.requests) == 1
    # The others notice nothing: liveness, the block itself, and what needs no session.
    assert httpx.get(f"{proxy.url}/readyz?self").status_code == 200
    not_ready = httpx.get(f"{proxy.url}/readyz")
    assert (not_ready.status_code, redis_server.url in not_ready.text) == (503, True)
    chat = {"messages": [{"role": "user", "content": "hi"}], "model": "block-1"}
    assert httpx.post(f"{proxy.url}/v1/chat/completions", json=chat).status_code == 200
    redis_server.resume() if how == "pause" else redis_server.start()
    wait_for(lambda: httpx.get(f"{proxy.url}/readyz").status_code == 200)
    assert ask(proxy, "two", 2).json()["data"]["reply"] == "4 messages: two"


@pytest.mark.parametrize("how", ["kill", "pause"])
@pytest.mark.parametrize("lost", ["before", "meanwhile"])
def test_a_turn_waits_for_a_store_that_comes_back(
    replicas: list[TierProcess],
    redis_server: RedisServer,
    upstream: SmallUpstream,
    how: str,
    lost: str,
) -> None:
    ask(replicas[0], "one", 1)
    with ThreadPoolExecutor(2) as threads:
        if lost == "before":
            getattr(redis_server, how)()
        upstream.held = lost == "meanwhile"
        running = threads.submit(ask, replicas[0], "slow", 2)
        if lost == "meanwhile":
            wait_for(lambda: upstream.in_flight)
            getattr(redis_server, how)()
        upstream.held = False
        # The same turn at another replica: answered once, recorded once.
        other = threads.submit(ask, replicas[1], "slow", 2)
        # One that is paused is given up for the first time only then.
        time.sleep(ANSWER_TIMEOUT_S + 0.5 if how == "pause" else 1)
        assert not running.done()
        redis_server.resume() if how == "pause" else redis_server.start()
        assert running.result().json()["data"]["reply"] == "4 messages: slow"
        assert other.result().text == running.result().text
    assert len(upstream.requests) == 2
    assert ask(replicas[1], "three", 3).json()["data"]["reply"] == "6 messages: three"


def test_a_replica_that_dies_gives_its_session_to_the_other(
    replicas: list[TierProcess],
    mortal: TierProcess,
    redis_server: RedisServer,
    upstream: SmallUpstream,
) -> None:
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(ask, mortal, "hang", 1)
        wait_for(lambda: upstream.in_flight)
        mortal.process.kill()
        assert isinstance(running.exception(), httpx.HTTPError)
    # Who says that the one before is gone has not to wait until the lease runs out: never, here.
    with Redis.from_url(redis_server.url, password=PASSWORD) as store:
        assert store.persist(f"splitstack:{DEPLOYMENT}:block-1:lock:s")
    answer = ask(replicas[1], "instead", 1, {AGAIN_HEADER: "1"})
    assert answer.json()["data"]["reply"] == "2 messages: instead"


def test_one_that_was_taken_for_dead_records_nothing(
    replicas: list[TierProcess], upstream: SmallUpstream
) -> None:
    with ThreadPoolExecutor(1) as threads:
        upstream.held = True
        running = threads.submit(ask, replicas[0], "slow", 1)
        wait_for(lambda: upstream.in_flight)
        again = ask(replicas[1], "instead", 1, {AGAIN_HEADER: "1"})
        upstream.held = False
        # Both get the answer that was recorded.
        assert running.result().text == again.text
    assert ask(replicas[0], "two", 2).json()["data"]["reply"] == "4 messages: two"


def test_another_turn_does_not_take_the_session_of_a_dead_one(
    replicas: list[TierProcess], upstream: SmallUpstream
) -> None:
    with ThreadPoolExecutor(2) as threads:
        upstream.held = True
        running = threads.submit(ask, replicas[0], "slow", 11)
        wait_for(lambda: upstream.in_flight)
        later = threads.submit(ask, replicas[1], "later", 111, {AGAIN_HEADER: "1"})
        time.sleep(0.5)
        assert len(upstream.requests) == 1
        upstream.held = False
        assert running.result().json()["data"]["reply"] == "2 messages: slow"
    assert later.result().json()["data"]["reply"] == "4 messages: later"


def test_a_proxy_starts_before_its_store(
    replicas: list[TierProcess], shared_spec: ProxySpec, redis_server: RedisServer, folder: Path
) -> None:
    redis_server.kill()
    with replica(shared_spec, folder) as proxy, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, proxy, "one", 1)
        time.sleep(1)
        assert not waiting.done()
        redis_server.start()
        assert waiting.result().status_code == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "http://x"}, "sessions.url = 'http://x'"),
        ({"url": "redis://x:y/0"}, "sessions.url"),
    ],
)
def test_a_url_that_is_none_ends_the_process(
    shared_spec: ProxySpec, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    spec = dataclasses.replace(shared_spec, sessions=SessionsSpec(**change))
    process = replica(spec, tmp_path)
    assert process.process.wait(60) == 2
    assert said in process.errors()


def test_a_missing_password_file_ends_the_process(shared_spec: ProxySpec, tmp_path: Path) -> None:
    options = ("--session-password-file", str(tmp_path / "none"))
    process = TierProcess("proxy_block", shared_spec, tmp_path, None, *options)
    assert process.process.wait(60) == 2
    assert "--session-password-file" in process.errors()
