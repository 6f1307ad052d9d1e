"""The group's life with real stages. The stages outlive each test's master, as they should."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.specs import spec_hash
from runner.errors import RequestEndsTheGroup
from runner.master.engine.engine import Engine
from runner.master.engine.requests import GenerationRequest, TokenEvent
from runner.master.group import barren_epochs
from runner.steps import Segment
from runner.transport.connection import HANDSHAKE_LIMIT_S
from runner.transport.control import Join, Refusal
from runner.transport.control_channel import ControlChannel
from runner.transport.dialling import dial
from runner.transport.frames import Epoch
from runner.transport.handshake import MASTER_RANK, NO_EPOCH, NO_SPEC, Hello, Refused, Role
from tests.e2e.tcp_proxy import TcpProxy
from tests.lanes import each_value
from tests.runner.running_stages import GREEDY, Recorder, Stages

pytestmark = pytest.mark.slow
LAYERS = [(0, 2), (2, 4), (4, 6)]
PROMPT = (5, 17, 99, 3, 42, 7, 64)
COUNT = 12
# Nothing but the group itself notices within it: no step is on its way.
NOTICED_S = 20.0
ENDED = {
    signal.SIGKILL: ["killed"],
    # By restart(), or its control connection was silent for 3 s before.
    signal.SIGSTOP: ["killed", "hung and was restarted"],
    signal.SIGTERM: ["was asked to end"],
}
LINKS = {0: "127.0.0.2", 1: "127.0.0.3", 2: "127.0.0.4"}
MASTER_LINK = "127.0.0.5"


@pytest.fixture(scope="module")
def stages(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    """Three ranks; every connection runs through a proxy on an address of its own."""
    state = tmp_path_factory.mktemp("group")
    stages = Stages(str(small_llama), LAYERS, state, advertise=LINKS, master_host=MASTER_LINK)
    stages.start()
    yield stages
    stages.end()


@pytest.fixture(scope="module")
def links(stages: Stages) -> Iterator[dict[str, TcpProxy]]:
    """By what they lead to: ranks, and the master (control connections and the return)."""
    ports = {LINKS[item.rank]: item.data_port for item in stages.stage_specs}
    ports[MASTER_LINK] = stages.master_spec.master_port
    proxies = {host: TcpProxy((host, port), ("127.0.0.1", port)) for host, port in ports.items()}
    yield proxies
    for proxy in proxies.values():
        proxy.close()


@pytest.fixture(scope="module")
def expected(small_llama: Path) -> list[int]:
    """What unsplit transformers generates."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(small_llama, dtype=torch.float32)
    output = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False
    )
    ids: list[int] = output[0, len(PROMPT) :].tolist()
    assert len(set(ids)) > COUNT // 2
    return ids


@pytest.fixture(autouse=True)
def _network(links: dict[str, TcpProxy]) -> None:
    """Every test's stages can reach everybody."""


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 150))


def test_steps_go_round(stages: Stages, expected: list[int]) -> None:
    async def work() -> None:
        async with stages.master() as master:
            formation = await master.until_formed()
            assert [stage.layers for stage in formation.stages] == LAYERS
            assert [stage.address for stage in formation.stages] == list(LINKS.values())
            pids = stages.process_ids()
            assert [stage.process_id for stage in formation.stages] == list(pids.values())
            assert all(stage.kv_tokens > 0 for stage in formation.stages)
            assert await master.generate(1, PROMPT, COUNT) == expected
            result = await master.step((), ())
            assert result.tokens == ()
            assert [time.rank for time in result.times] == [0, 1, 2]

    run(work())


def test_a_masters_death_costs_no_weights(stages: Stages, expected: list[int]) -> None:
    async def work() -> None:
        async with stages.master() as master:
            before = await master.until_formed()
        pids = stages.process_ids()
        async with stages.master() as master:
            formation = await master.until_formed()
            assert formation.epoch == before.epoch + 1
            assert master.group.history.restarts(3) == (0, 0, 0)
            [*_, event] = master.group.history.describe_events()
            assert str(event["text"]).startswith("the master restarted, back after ")
            assert await master.generate(1, PROMPT, COUNT) == expected
            assert {stage.rank: stage.process_id for stage in formation.stages} == pids

    run(work())


@pytest.mark.parametrize(
    ("rank", "number"), each_value([0, 1, 2], [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
)
def test_a_lost_stage(
    stages: Stages, expected: list[int], rank: int, number: signal.Signals
) -> None:
    async def work() -> None:
        async with stages.master() as master:
            first = await master.until_formed()
            await master.generate(1, PROMPT, 3)
            master.group.note_progress()
            stages.signal(rank, number)
            await master.until_lost(NOTICED_S)
            stages.restart(rank)
            second = await master.until_formed()
            assert second.epoch > first.epoch
            assert len(master.recorder.losses) == 1
            changed = [a.rank for a, b in zip(first.stages, second.stages, strict=True) if a != b]
            assert changed == [rank]
            assert master.group.history.restarts(3) == tuple(int(item == rank) for item in range(3))
            [*_, event] = master.group.history.describe_events()
            assert (event["kind"], event["rank"]) == ("rank", rank)
            beginnings = [f"rank {rank} {how}, back after " for how in ENDED[number]]
            assert str(event["text"]).startswith(tuple(beginnings))
            assert await master.generate(1, PROMPT, COUNT) == expected

    run(work())


@pytest.mark.parametrize("host", [*LINKS.values(), MASTER_LINK])
@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_a_lost_link(
    stages: Stages, links: dict[str, TcpProxy], expected: list[int], host: str, how: str
) -> None:
    async def work() -> None:
        pids = stages.process_ids()
        async with stages.master() as master:
            first = await master.until_formed()
            await master.generate(1, PROMPT, 3)
            if how == "cut":
                assert links[host].cut() > 0
            else:
                links[host].freeze()
            await master.until(lambda: master.recorder.losses, "noticed", NOTICED_S)
            if how == "freeze":  # after a cut, thawing would cut what has formed meanwhile
                links[host].thaw()
            second = await master.until_formed()
            assert second.epoch > first.epoch
            assert {stage.rank: stage.process_id for stage in second.stages} == pids
            assert await master.generate(1, PROMPT, COUNT) == expected

    run(work())


def test_an_abandoned_epoch_forms_again(stages: Stages, expected: list[int]) -> None:
    async def work() -> None:
        async with stages.master() as master:
            first = await master.until_formed()
            master.group.abandon_epoch("step 7 has not come back")
            assert master.group.state == "forming"
            assert master.recorder.losses == []  # told later, never from within the call
            second = await master.until_formed()
            assert master.recorder.losses == ["step 7 has not come back"]
            assert second.epoch == first.epoch + 1
            assert await master.generate(1, PROMPT, COUNT) == expected

    run(work())


def test_three_barren_epochs_are_a_pause_that_grows(
    stages: Stages, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barren_epochs, "FIRST_PAUSE_S", 1.0)

    async def work() -> None:
        async with stages.master() as master:
            for _ in range(2):
                await master.until_formed()
                master.group.abandon_epoch("lost at once")
            await master.until_formed()
            master.group.note_progress()
            master.group.abandon_epoch("lost after a token")
            for _ in range(2):
                await master.until_formed()
                master.group.abandon_epoch("lost again")
            for count, pause_s in ((3, 1), (4, 2)):
                await master.until_formed()
                began = asyncio.get_running_loop().time()
                master.group.abandon_epoch("the last straw")
                await master.until(lambda: master.group.state == "failed", "failed")
                assert f"{count} groups in a row" in master.group.reason
                assert "the last straw" in master.group.reason
                assert f"the next try is in {pause_s} s" in master.group.reason
                assert master.group.retry_after_s == pause_s
                await master.until(lambda: master.group.state == "ready", "tried again")
                assert asyncio.get_running_loop().time() - began >= pause_s
            assert await master.generate(1, PROMPT, COUNT) == expected
            master.group.note_progress()
            master.group.abandon_epoch("lost after a token")
            await master.until_formed()

    run(work())


def test_a_new_process_ends_the_pause(
    stages: Stages, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barren_epochs, "FIRST_PAUSE_S", 120.0)

    async def work() -> None:
        async with stages.master() as master:
            for _ in range(3):
                await master.until_formed()
                master.group.abandon_epoch("lost at once")
            await master.until(lambda: master.group.state == "failed", "failed")
            await asyncio.sleep(0.5)
            assert master.group.state == "failed"
            assert 100 < master.group.retry_after_s <= 120
            stages.restart(1)
            await master.until_formed()
            assert await master.generate(1, PROMPT, COUNT) == expected

    run(work())


@pytest.mark.long
def test_a_request_that_kills_a_stage_ends_and_the_others_go_on(
    small_llama: Path, tmp_path: Path, expected: list[int]
) -> None:
    """The process of a stage ends whenever it is to compute one token id."""

    async def work() -> None:
        stages = Stages(str(small_llama), [(0, 3), (3, 6)], tmp_path)
        deadly = min({*range(128)} - {*PROMPT, *expected})
        stages.start(0)
        stages.start_deadly(1, deadly)
        group = stages.group()
        engine = Engine(group)
        await group.start(engine)
        keeper = asyncio.create_task(stages.keep_alive(1, lambda: stages.start_deadly(1, deadly)))
        try:
            async with asyncio.timeout(60):
                while not engine.ready:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            innocent = [asyncio.create_task(generated(engine, PROMPT)) for _ in range(3)]
            culprit = asyncio.create_task(generated(engine, (*PROMPT, deadly)))
            with pytest.raises(RequestEndsTheGroup):
                await culprit
            assert await asyncio.gather(*innocent) == [expected] * 3
            assert engine.statistics().losses == 3
        finally:
            keeper.cancel()
            await group.stop()
            stages.end()

    run(work())


async def generated(engine: Engine, prompt: tuple[int, ...]) -> list[int]:
    request = GenerationRequest(prompt, COUNT, replace(GREEDY, seed=0))
    tokens = engine.generate(request)
    return [event.token_id async for event in tokens if isinstance(event, TokenEvent)]


def test_a_step_that_cannot_be_computed_costs_the_epoch_only(
    stages: Stages, expected: list[int]
) -> None:
    async def work() -> None:
        async with stages.master() as master:
            await master.until_formed()
            # Of a request that was never admitted.
            step = asyncio.create_task(master.step((Segment(77, 0, 1, 1, True),), (1,)))
            await master.until(lambda: master.recorder.losses, "lost")
            assert "rank 0 could not compute step 1" in master.recorder.losses[0]
            step.cancel()
            await master.until(lambda: master.group.state == "ready", "formed again")
            assert await master.generate(1, PROMPT, COUNT) == expected

    run(work())


def test_a_connection_of_an_older_epoch_is_refused_by_name(stages: Stages) -> None:
    async def work() -> None:
        async with stages.master() as master:
            formation = await master.until_formed()
            digest = spec_hash(stages.spec)
            old = Epoch(1, formation.epoch)
            port = stages.stage_specs[0].data_port
            hello = Hello(Role.DATA, MASTER_RANK, old, digest)
            with pytest.raises(Refused, match=f"epoch {old} is not this stage's"):
                await dial("127.0.0.1", port, stages.token, hello)
            hello = Hello(Role.RETURN, 2, old, digest)
            with pytest.raises(Refused, match=f"epoch {old} is not in force"):
                await dial("127.0.0.1", stages.master_spec.master_port, stages.token, hello)
            assert master.group.state == "ready"

    run(work())


def other_token(stages: Stages) -> Path:
    path = stages.state / "other-token"
    path.write_text("f" * 32)
    return path


def test_a_stage_of_another_group_is_refused_by_name(
    small_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    what = "the group tokens differ"

    async def work() -> None:
        stages = Stages(str(small_llama), [(0, 6)], tmp_path)
        process = stages.launch(0, token_file=other_token(stages))
        try:
            async with stages.master() as master:
                await master.until(lambda: what in stages.log(0), "told to the stage")
                await master.until(lambda: what in caplog.text, "logged by the master")
                assert process.poll() is None  # it tries again: the master may be the old one
                assert master.group.state == "starting"
        finally:
            process.kill()
            process.wait(60)

    run(work())


def test_a_rank_that_is_held_is_refused_by_name(stages: Stages) -> None:
    async def work() -> None:
        async with stages.master() as master:
            await master.until_formed()
            hello = Hello(Role.CONTROL, 1, NO_EPOCH, NO_SPEC)
            connection = await dial(
                "127.0.0.1", stages.master_spec.master_port, stages.token, hello
            )
            channel = await ControlChannel.over(connection)
            channel.send(Join("another process", 1, "127.0.0.9", 1, "", "cpu"))
            answer = await channel.receive()
            assert isinstance(answer, Refusal)
            holder = stages.processes[1].pid
            assert answer.reason == (
                f"rank 1 is held by process {holder} at {LINKS[1]}, which is alive"
            )
            channel.abort()
            assert master.group.state == "ready"
            assert master.recorder.losses == []

    run(work())


def test_idle_connections_delay_no_forming(stages: Stages) -> None:
    """500 on the master's port and 500 on a stage's, while the epoch is formed anew."""

    async def work() -> None:
        async with stages.master() as master:
            await master.until_formed()
            ports = (stages.master_spec.master_port, stages.stage_specs[1].data_port)
            idle = [
                socket.create_connection(("127.0.0.1", port)) for port in ports for _ in range(500)
            ]
            master.group.abandon_epoch("to form again")
            took = await master.until(lambda: master.group.state == "ready", "formed")
            for connection in idle:
                connection.close()
            assert took < HANDSHAKE_LIMIT_S  # what waiting for one of them takes

    run(work())


def test_a_fault_of_the_groups_own_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fault(_membership: object) -> None:
        raise RuntimeError("a slip")

    monkeypatch.setattr("runner.master.group.keeper.SpecKeeper.decide", fault)

    async def work() -> None:
        told: list[BaseException] = []
        stages = Stages("model", [(0, 6)], tmp_path)
        group = stages.group(on_fault=told.append)
        await group.start(Recorder())
        async with asyncio.timeout(60):
            while not told:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await group.stop()
        assert [str(error) for error in told] == ["a slip"]

    run(work())


def test_while_draining_a_stage_keeps_stepping(
    small_llama: Path, tmp_path: Path, expected: list[int]
) -> None:
    async def work() -> None:
        stages = Stages(str(small_llama), [(0, 6)], tmp_path)
        stages.start()
        try:
            async with stages.master() as master:
                await master.until_formed()
                master.group.drain()
                stages.signal(0, signal.SIGTERM)
                await asyncio.sleep(1.0)  # longer than a stage that leaves alone is kept
                assert await master.generate(1, PROMPT, COUNT) == expected
            assert stages.processes[0].wait(60) == 0
        finally:
            stages.end()

    run(work())


def test_weights_that_cannot_be_loaded_are_told(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "no-such-model"}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")

    async def work() -> None:
        stages = Stages(str(tmp_path / "model"), [(0, 1)], tmp_path)
        stages.start()
        try:
            async with stages.master() as master:
                await master.until(
                    lambda: "rank 0 cannot load the model" in master.group.reason, "told"
                )
                assert "no-such-model" in master.group.reason
                assert stages.processes[0].wait(60) == 2
                assert master.group.state == "starting"
        finally:
            stages.end()

    run(work())
