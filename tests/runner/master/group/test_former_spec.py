"""What a new master finds that was served before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contract.specs import GroupSpec, RankPart
from runner.master.group import former_spec
from runner.master.group.former_spec import FormerSpec
from runner.master.group.own_part import OwnPart, nothing_more
from runner.transport.control import GroupMemory, Served


def spec(folder: Path, *borders: int) -> GroupSpec:
    parts = (RankPart((a, b)) for a, b in zip((0, *borders), borders, strict=False))
    return GroupSpec("d", str(folder), tuple(parts))


def memory(version: int, served: Served | None) -> GroupMemory:
    return GroupMemory(version, 1, 1, 0, 0, (), (), (), served)


def test_the_newest_that_a_stage_remembers_counts_and_else_the_file(small_llama: Path) -> None:
    async def found(*heard: tuple[int, GroupSpec | None]) -> GroupSpec | None:
        former = FormerSpec(spec(small_llama, 6), OwnPart("", nothing_more))
        for number, (version, known) in enumerate(heard):
            served = None if known is None else Served(known, "")
            former.heard(memory(version, served), number + 1)
        result = await former.found(lambda: None, lambda: True)
        assert result is None or result.commit
        return None if result is None else result.spec

    async def work() -> None:
        old, new = spec(small_llama, 2, 6), spec(small_llama, 3, 6)
        assert await found((0, None)) == spec(small_llama, 6)
        assert await found((3, old), (7, new)) == new
        assert await found((7, new), (3, old)) == new
        # Who has nothing to say of it does not count, however new.
        assert await found((3, old), (9, None)) == old

    asyncio.run(work())


def test_without_either_nothing_was(small_llama: Path) -> None:
    former = FormerSpec(None, OwnPart("", nothing_more))
    former.heard(None, 1)
    assert asyncio.run(former.found(lambda: None, lambda: True)) is None


def test_a_model_that_cannot_be_had_is_told_and_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(former_spec, "RESOLVE_AGAIN_S", 0.01)
    former = FormerSpec(spec(tmp_path / "none", 6), OwnPart("", nothing_more))
    former.heard(None, 1)

    async def work() -> None:
        told, wanted = asyncio.Event(), [True]
        looking = asyncio.create_task(former.found(told.set, lambda: wanted[0]))
        await asyncio.wait_for(told.wait(), 20)
        assert str(tmp_path / "none") in former.failure
        assert not looking.done()
        wanted[0] = False  # another one is served
        assert await asyncio.wait_for(looking, 20) is None
        assert former.failure == ""

    asyncio.run(work())
