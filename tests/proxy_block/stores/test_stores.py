"""One suite for both stores: a real SQLite file and a real redis-server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.specs import SessionsSpec
from proxy_block.session import Exchange, SeqNoPassed, Session, Turn
from proxy_block.stores.interface import SessionStore, SessionUnreadable, StoreUnavailable
from proxy_block.stores.redis import RedisStore
from proxy_block.stores.sqlite import SqliteStore
from tests.programs import needs
from tests.proxy_block.stores.redis_server import RedisServer

Open = Callable[..., SessionStore]
PASSWORD = "secret of the store"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), PASSWORD) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs("redis-server"))])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same store each time, with the bounds given."""
    path = str(tmp_path / "folder" / "sessions.sqlite3")
    if request.param == "sqlite":
        return lambda **bounds: SqliteStore(SessionsSpec(path, **bounds))
    url = request.getfixturevalue("redis_server").url
    namespace = tmp_path.name
    return lambda **bounds: RedisStore(SessionsSpec(url=url, **bounds), namespace, PASSWORD)


def run(
    open_store: Open, work: Callable[[SessionStore], Coroutine[Any, Any, Any]], **bounds: Any
) -> Any:
    async def with_store() -> Any:
        store = open_store(**bounds)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(with_store())


def turn(seq_no: int, message: str = "") -> Exchange:
    return Exchange(
        seq_no, {"reply": "r"}, (Turn(message or str(seq_no), "r", 10),), None, "system"
    )


def messages(session: Session) -> list[str]:
    return [turn.message for turn in session.turns]


def test_what_is_recorded_is_there_for_the_next_process(open_store: Open) -> None:
    async def first(store: SessionStore) -> None:
        assert await store.read("s") == Session()
        await store.record("s", turn(1, "ä\0\n{}"))
        await store.record("s", turn(2))
        await store.record("other", turn(1))

    run(open_store, first)
    found = run(open_store, lambda store: store.read("s"))
    assert messages(found) == ["ä\0\n{}", "2"]
    assert (found.seq_no, found.answer, found.system_message) == (2, {"reply": "r"}, "system")


def test_bounds_hold_in_the_store(open_store: Open) -> None:
    async def work(store: SessionStore) -> Session:
        for seq_no in range(5):
            await store.record("s", turn(seq_no))
        return await store.read("s")

    assert messages(run(open_store, work, max_turns=2)) == ["3", "4"]


def test_old_sessions_are_forgotten(open_store: Open) -> None:
    async def work(store: SessionStore) -> None:
        await store.record("old", turn(5))
        assert messages(await store.read("old")) == ["5"]
        await asyncio.sleep(1.1)
        assert await store.read("old") == Session()
        await store.record("new", turn(1))
        assert await store.reset(None) == 1

    run(open_store, work, max_age_s=1.0)


def test_a_seq_no_is_recorded_once(open_store: Open) -> None:
    async def work(store: SessionStore) -> None:
        await store.record("s", turn(3))
        for seq_no in (3, 2):
            with pytest.raises(SeqNoPassed):
                await store.record("s", turn(seq_no, "too late"))
        assert messages(await store.read("s")) == ["3"]

    run(open_store, work)


def test_of_many_at_once_none_is_lost_or_doubled(open_store: Open) -> None:
    async def work(store: SessionStore) -> Session:
        done = await asyncio.gather(
            *(store.record("s", turn(seq_no)) for seq_no in range(20)), return_exceptions=True
        )
        assert all(one is None or isinstance(one, SeqNoPassed) for one in done)
        recorded = sum(one is None for one in done)
        found = await store.read("s")
        assert len(found.turns) == recorded >= 1
        return found

    numbers = [int(message) for message in messages(run(open_store, work))]
    assert numbers == sorted(set(numbers))


def test_many_sessions_at_once_wait_for_the_store(open_store: Open) -> None:
    async def work(store: SessionStore) -> list[Session]:
        return await asyncio.gather(*(store.read(f"s{number}") for number in range(300)))

    assert len(run(open_store, work)) == 300


def test_reset_of_one_and_of_all(open_store: Open) -> None:
    async def work(store: SessionStore) -> None:
        for session_id in ("a", "b", "c*"):
            await store.record(session_id, turn(1))
        assert await store.reset("a") == 1
        assert await store.reset("a") == 0
        assert await store.read("a") == Session()
        await store.record("a", turn(1, "after"))
        assert messages(await store.read("a")) == ["after"]
        assert await store.reset(None) == 3
        assert await store.read("b") == Session()

    run(open_store, work)


def test_a_lease_is_left_when_it_ends(open_store: Open) -> None:
    async def work(store: SessionStore) -> str:
        for _ in range(2):
            async with asyncio.timeout(60):
                async with store.lease("s", 1), store.lease("another", 1):
                    pass
        return await store.not_ready()

    assert run(open_store, work) == ""


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sqlite3"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnavailable, match=r"sessions\.path"):
        SqliteStore(SessionsSpec(path=str(path)))


def test_a_url_that_is_none_is_named() -> None:
    with pytest.raises(StoreUnavailable, match=r"sessions\.url = 'http://x'"):
        RedisStore(SessionsSpec(url="http://x"), "n")


@needs("redis-server")
def test_two_processes_take_turns_with_a_session(redis_server: RedisServer) -> None:
    spec = SessionsSpec(url=redis_server.url)
    order: list[str] = []

    async def hold(store: RedisStore, name: str, held: asyncio.Event) -> None:
        async with store.lease("s", 1):
            held.set()
            order.append(f"{name} begins")
            await asyncio.sleep(0.2)
            order.append(f"{name} ends")

    async def work() -> None:
        stores = [RedisStore(spec, "leases", PASSWORD) for _ in range(2)]
        held = asyncio.Event()
        first = asyncio.create_task(hold(stores[0], "first", held))
        await held.wait()
        await hold(stores[1], "second", held)
        await first
        for store in stores:
            await store.close()

    asyncio.run(work())
    assert order == ["first begins", "first ends", "second begins", "second ends"]


@needs("redis-server")
def test_a_lease_outlasts_its_time_while_it_is_held_and_ends_with_a_dead_holder(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy_block.stores.redis.LEASE_S", 1.0)
    spec = SessionsSpec(url=redis_server.url)

    async def work() -> None:
        holder, waiter = (RedisStore(spec, "renewed", PASSWORD) for _ in range(2))
        async with holder.lease("s", 1):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.6), waiter.lease("s", 1):
                    pass
        # A process that dies: the key stays, nobody renews it.
        await holder._client.set("splitstack:renewed:lock:s", "1:dead", px=300)
        async with asyncio.timeout(60), waiter.lease("s", 1):
            pass
        await holder.close()
        await waiter.close()

    asyncio.run(work())


@needs("redis-server")
def test_a_lease_is_taken_over_by_the_same_seq_no_and_had_again_of_a_server_that_forgot_it(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy_block.stores.redis.LEASE_S", 1.5)
    spec = SessionsSpec(url=redis_server.url)

    async def work() -> None:
        holder, other = (RedisStore(spec, "taken", PASSWORD) for _ in range(2))
        async with holder.lease("s", 7):
            await holder._client.delete("splitstack:taken:lock:s")
            async with asyncio.timeout(60):
                while not await holder._client.exists("splitstack:taken:lock:s"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            for seq_no, again in ((7, False), (8, True), (77, True)):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1), other.lease("s", seq_no, again=again):
                        pass
            async with asyncio.timeout(60), other.lease("s", 7, again=True):
                while "lease was lost" not in caplog.text:  # noqa: ASYNC110 (of a log)
                    await asyncio.sleep(0.02)
        await holder.close()
        await other.close()

    asyncio.run(work())


@needs("redis-server")
@pytest.mark.parametrize("password", ["", "wrong"])
def test_a_wrong_password_is_said_and_not_shown(redis_server: RedisServer, password: str) -> None:
    async def work() -> str:
        store = RedisStore(SessionsSpec(url=redis_server.url), "n", password)
        with pytest.raises(StoreUnavailable) as raised:
            await store.read("s")
        assert await store.not_ready() == str(raised.value)
        await store.close()
        return str(raised.value)

    message = asyncio.run(work())
    assert redis_server.url in message
    assert "wrong" not in message.replace("wrong number", "").replace("WRONGPASS", "")


@needs("redis-server")
def test_what_is_no_session_is_refused_until_it_is_reset(redis_server: RedisServer) -> None:
    async def work() -> None:
        store = RedisStore(SessionsSpec(url=redis_server.url), "broken", PASSWORD)
        await store._client.set("splitstack:broken:session:s", "{")
        with pytest.raises(SessionUnreadable):
            await store.read("s")
        assert await store.reset("s") == 1
        assert await store.read("s") == Session()
        await store.close()

    asyncio.run(work())
