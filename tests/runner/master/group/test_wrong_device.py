"""A rank on a device that is not the stack file's: refused at a real join, by name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from contract.specs import render
from runner.master.group.wrong_device import wrong_device
from runner.transport.control import Join
from tests.runner.fake_driver import MEMORY_BYTES, fake_driver, needs_compiler
from tests.runner.running_stages import Stages

FOUND = "GPU-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
OTHER = "GPU-ffffffff-4e5f-6071-8293-a4b5c6d7e8f9"


def join(devices: str, found: str = FOUND) -> Join:
    return Join("a process", 1, "127.0.0.1", 3001, "", devices, device_uuid=found)


@pytest.mark.parametrize(
    "devices",
    ["cuda:0", "0,1", FOUND, "GPU-0a1b2c3d", f"{OTHER},{FOUND}"],
)
def test_devices_that_a_rank_may_have(devices: str) -> None:
    assert wrong_device(1, join(devices)) == ""


def test_a_part_of_a_gpu_goes_by_its_own_uuid() -> None:
    assert wrong_device(1, join(FOUND.replace("GPU", "MIG"))) == ""
    assert wrong_device(1, join(OTHER.replace("GPU", "MIG"))) != ""


def test_a_rank_that_nobody_can_tell_the_device_of() -> None:
    assert wrong_device(1, join(OTHER, found="")) == ""


def test_the_sentence_names_rank_wanted_and_found() -> None:
    assert wrong_device(1, join(OTHER)) == (
        f"rank 1 has the device {FOUND}, and {OTHER} is asked for "
        "(per_rank_params[].device_uuid or nvidia_visible_devices)"
    )


@needs_compiler
@pytest.mark.parametrize("wanted", [FOUND, OTHER])
def test_a_real_join(
    wanted: str, small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = fake_driver(tmp_path / "driver", UUID(FOUND.removeprefix("GPU-")))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    stages = Stages(str(small_llama), [(0, 6)], tmp_path)
    spec = replace(stages.stage_specs[0], device="cuda:0", visible_devices=wanted)
    stages.spec_file(0).write_text(render(spec))
    sentence = f"rank 0 has the device {FOUND}, and {OTHER} is asked for"

    def readiness() -> str:
        try:
            return str(stages.health(0, "/readyz").json().get("reason", ""))
        except httpx.HTTPError:
            return ""

    async def work() -> None:
        async with stages.master() as master:
            stages.start()
            if wanted == FOUND:
                await master.until(lambda: any(master.group.joins()), "joined")
                (found,) = master.group.joins()
                assert found is not None
                assert (found.device_uuid, found.device_bytes) == (FOUND, MEMORY_BYTES)
                return
            await master.until(lambda: sentence in master.group.reason, "refused")
            assert master.group.reason.startswith("waiting for stages: rank 0 is refused: ")
            await master.until(lambda: sentence in stages.log(0), "told to the stage")
            asked = asyncio.to_thread(readiness)
            assert f"the master has not let it in yet: {sentence}" in await asked
            assert stages.processes[0].poll() is None  # it tries again: the file may be mended

    try:
        asyncio.run(work())
    finally:
        stages.end()
