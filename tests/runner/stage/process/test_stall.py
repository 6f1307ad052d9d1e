"""A load that gets no byte is given up, and its process with it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from contract.specs import render
from runner.stage.process.stall import Stall
from tests.runner.running_stages import Stages
from tests.waiting import wait_for

HANGING = """
import sys, threading
import runner.stage.__main__ as stage
from runner.stage.process import load, worker

load.{function} = worker.{function} = lambda *_: threading.Event().wait()
sys.exit(stage.main())
"""


def test_a_thread_that_waits_has_stalled_and_one_that_gets_bytes_has_not() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert thread.native_id is not None
    stall, fetched = Stall(thread.native_id, 0.05), Stall(thread.native_id, 0.0)
    assert not any(fetched.over(size) for size in range(100))
    wait_for(stall.over, what="stalled")
    end.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("function", ["prepare", "load"])
def test_the_process_ends_with_1_and_the_master_is_told(
    small_llama: Path, tmp_path: Path, function: str
) -> None:
    async def work() -> None:
        stages = Stages(str(small_llama), [(0, 6)], tmp_path)
        spec = replace(stages.stage_specs[0], stall_s=1.0)
        stages.spec_file(0).write_text(render(spec))
        stages.start_program(0, HANGING.format(function=function))
        try:
            async with stages.master() as master:
                told = "rank 0 cannot load the model: no byte came for 1 s"
                await master.until(lambda: told in master.group.reason, "told", 120)
                await master.until(lambda: stages.processes[0].poll() is not None, "ended")
                assert stages.processes[0].returncode == 1
        finally:
            stages.end()

    asyncio.run(work())
