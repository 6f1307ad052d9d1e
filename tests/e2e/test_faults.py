"""Every way a rank is lost, while eight streams run: each ends with the text it would have had."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import httpx
import pytest

from runner.models.folder import resolve_model
from tests.e2e.rank_group import MASTER, RankGroup
from tests.e2e.streams import Stream, make_bodies, run_streams
from tests.e2e.tcp_proxy import TcpProxy
from tests.lanes import each_value
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

STREAMS = 8
NEW_TOKENS = 48
LAYERS = [(0, 15), (15, 30)]
NOTICED_S = 20.0


@pytest.fixture(scope="module")
def model() -> str:
    return str(resolve_model("demo:smollm2-135m-instruct", weights=True).path)


@pytest.fixture(scope="module")
def group(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """Two ranks whose links run through proxies on other loopback addresses."""
    group = RankGroup(
        model,
        LAYERS,
        tmp_path_factory.mktemp("group"),
        advertise={0: "127.0.0.2", 1: "127.0.0.3"},
        reach_master="127.0.0.4",
    )
    try:
        yield group
    finally:
        group.stop()


@pytest.fixture(scope="module")
def links(group: RankGroup) -> Iterator[dict[str, TcpProxy]]:
    """The network: master -> stage 0, stage 0 -> stage 1, and stages -> master."""
    first, last = group.stage_specs
    proxies = {
        "master-to-stage-0": TcpProxy(
            ("127.0.0.2", first.data_port), ("127.0.0.1", first.data_port)
        ),
        "stage-0-to-stage-1": TcpProxy(
            ("127.0.0.3", last.data_port), ("127.0.0.1", last.data_port)
        ),
        "stages-to-master": TcpProxy(
            ("127.0.0.4", group.master_spec.master_port),
            ("127.0.0.1", group.master_spec.master_port),
        ),
    }
    yield proxies
    for proxy in proxies.values():
        proxy.close()


@pytest.fixture(scope="module")
def expected(group: RankGroup, links: dict[str, TcpProxy]) -> list[Stream]:
    group.start_all()
    streams = asyncio.run(run_streams(group.url, make_bodies(STREAMS, NEW_TOKENS)))
    assert [stream.error for stream in streams] == [None] * STREAMS
    assert len({stream.text for stream in streams}) == STREAMS
    return streams


@pytest.fixture(autouse=True)
def _ready(group: RankGroup, expected: list[Stream]) -> None:
    group.wait_ready(60)


def assert_same(streams: list[Stream], expected: list[Stream]) -> None:
    assert [stream.error for stream in streams] == [None] * STREAMS
    for got, wanted in zip(streams, expected, strict=True):
        assert (got.text, got.finish_reason) == (wanted.text, wanted.finish_reason)


def wait_unready(group: RankGroup) -> None:
    wait_for(lambda: not group.ready(), NOTICED_S, "readiness turns false")


@pytest.mark.parametrize(
    ("rank", "number"), each_value([0, 1], [signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM])
)
def test_lost_stage(
    group: RankGroup, expected: list[Stream], rank: int, number: signal.Signals
) -> None:
    epoch, survivor = group.topology()["epoch"], group.processes[1 - rank].pid

    def fault() -> None:
        group.signal(rank, number)
        wait_unready(group)
        group.restart(rank)

    streams = asyncio.run(run_streams(group.url, make_bodies(STREAMS, NEW_TOKENS), fault))
    assert_same(streams, expected)
    topology = group.topology()
    assert topology["epoch"] > epoch
    assert group.processes[1 - rank].pid == survivor
    assert group.processes[1 - rank].poll() is None


@pytest.mark.parametrize(
    ("link", "how"),
    each_value(["master-to-stage-0", "stage-0-to-stage-1", "stages-to-master"], ["cut", "freeze"]),
)
def test_lost_network(
    group: RankGroup,
    links: dict[str, TcpProxy],
    expected: list[Stream],
    link: str,
    how: str,
) -> None:
    epoch = group.topology()["epoch"]

    def fault() -> None:
        if how == "cut":
            assert links[link].cut() > 0
        else:
            links[link].freeze()
            wait_for(
                lambda: not group.ready() or group.topology()["epoch"] > epoch,
                # A frozen data link shows as a step that does not come back: at least 5 s.
                NOTICED_S,
                "the frozen link is noticed",
            )
            links[link].thaw()

    streams = asyncio.run(run_streams(group.url, make_bodies(STREAMS, NEW_TOKENS), fault))
    assert_same(streams, expected)
    assert group.topology()["epoch"] > epoch


def test_lost_master(group: RankGroup, expected: list[Stream]) -> None:
    stages = {rank: group.processes[rank].pid for rank in (0, 1)}
    streams = asyncio.run(
        run_streams(group.url, make_bodies(STREAMS, NEW_TOKENS), lambda: group.kill(MASTER))
    )
    assert all(stream.error for stream in streams)
    group.start(MASTER)
    wait_for(lambda: answers(group), what="the master is back")
    group.wait_ready(NOTICED_S)
    body = make_bodies(1, 4)[0] | {"stream": False}
    answer = httpx.post(f"{group.url}/v1/completions", json=body)
    assert answer.status_code == 200
    assert {rank: group.processes[rank].pid for rank in (0, 1)} == stages


def answers(group: RankGroup) -> bool:
    try:
        return httpx.get(f"{group.url}/livez", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
