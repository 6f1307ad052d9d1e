from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.local.process import start_time
from infra.local.supervisor import last_words
from tests.waiting import free_ports, wait_for

SERVER = Path(__file__).with_name("small_server.py")
# Runs a supervisor over small servers in a process of its own, as the command line does.
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from infra.local.process import ProcessDefinition
from infra.local.supervisor import Supervisor
from infra.local.progress import Progress

folder, rows = Path(sys.argv[1]), json.loads(sys.argv[2])
definitions = [
    ProcessDefinition(
        name=name, tier=tier, command=(sys.executable, *arguments),
        url=f"http://127.0.0.1:{port}", log=folder / f"{name}.log", startup_s=30.0,
    )
    for name, tier, port, arguments in rows
]
def changed(phase, reason):
    with (folder / "phases").open("a") as file:
        file.write(f"{phase}\\n")
    if phase == "ready":
        (folder / "said_when_ready").write_text((folder / "output").read_text())
supervisor = Supervisor(
    definitions, Progress(), changed, startup_s=30.0, drain_s=5.0, summary="all of it is ready"
)
sys.exit(asyncio.run(supervisor.run()))
"""


class SmallStack:
    """A supervisor process over one small server per tier; `extra` goes to the stage's."""

    def __init__(self, folder: Path, extra: tuple[str, ...] = ()) -> None:
        self.folder = folder
        tiers = ("inference-server", "proxy-block", "master", "stage")
        rows = []
        for tier, port in zip(tiers, free_ports(len(tiers)), strict=True):
            arguments = [str(SERVER), str(port), "--started", str(folder / f"{tier}.pids")]
            arguments += ["--ended", str(folder / "ended"), "--name", tier]
            rows.append((tier, tier, port, [*arguments, *(extra if tier == "stage" else ())]))
        self.output = (folder / "output").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), json.dumps(rows)],
            stdout=self.output,
            stderr=self.output,
        )

    def said(self, text: str) -> bool:
        return text in (self.folder / "output").read_text()

    def until_ready(self) -> None:
        wait_for(lambda: self.said("all of it is ready"), what="ready")

    def pids(self) -> list[int]:
        return [int(pid) for file in self.folder.glob("*.pids") for pid in file.read_text().split()]

    def alive(self) -> list[int]:
        return [pid for pid in self.pids() if start_time(pid) is not None]


@pytest.fixture
def small_stack(tmp_path: Path) -> Any:
    made: list[SmallStack] = []

    def make(*extra: str) -> SmallStack:
        made.append(SmallStack(tmp_path, extra))
        return made[-1]

    yield make
    for stack in made:
        stack.process.kill()
        stack.process.wait()
        stack.output.close()


def test_no_child_outlives_a_killed_supervisor(small_stack: Any) -> None:
    stack = small_stack()
    stack.until_ready()
    assert len(stack.alive()) == 4
    stack.process.kill()
    wait_for(lambda: not stack.alive(), 5, "all children gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_tiers_from_the_front(small_stack: Any, number: signal.Signals) -> None:
    stack = small_stack()
    stack.until_ready()
    stack.process.send_signal(number)
    assert stack.process.wait(20) == 0
    assert not stack.alive()
    ended = (stack.folder / "ended").read_text().split()
    assert ended == ["inference-server", "proxy-block", "master", "stage"]
    phases = (stack.folder / "phases").read_text().split()
    assert (phases[0], phases[-1]) == ("starting", "draining")
    assert "ready" in phases


def test_the_summary_is_said_before_the_state_is_ready(small_stack: Any) -> None:
    stack = small_stack()
    stack.until_ready()
    said = stack.folder / "said_when_ready"  # what `up --detach` has relayed when it goes
    wait_for(said.exists, what="the state ready")
    wait_for(lambda: "all of it is ready" in said.read_text(), what="the summary", limit_s=1)


def test_a_second_signal_does_not_wait(small_stack: Any) -> None:
    stack = small_stack()
    stack.until_ready()
    for pid in stack.alive():
        os.kill(pid, signal.SIGSTOP)  # it will not heed SIGTERM
    stack.process.send_signal(signal.SIGINT)
    wait_for(lambda: "draining" in (stack.folder / "phases").read_text(), what="draining")
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait(3) == 0
    assert not stack.alive()


def test_bad_usage_at_the_start_ends_everything_with_the_process_s_own_words(
    small_stack: Any,
) -> None:
    stack = small_stack("--exit-code", "2")
    assert stack.process.wait(20) == 2
    assert stack.said("error: stage ended with exit code 2: layers = 3: no such layers")
    assert not stack.alive()


def test_what_keeps_dying_before_it_was_ready_ends_everything(small_stack: Any) -> None:
    stack = small_stack("--exit-code", "1")
    assert stack.process.wait(30) == 1
    assert stack.said("stage ended with exit code 1; it is started again")
    assert stack.said("error: stage ended with exit code 1: layers = 3: no such layers")
    assert len((stack.folder / "stage.pids").read_text().split()) == 5
    assert not stack.alive()


def test_a_death_after_ready_is_told_and_mended(small_stack: Any) -> None:
    stack = small_stack()
    stack.until_ready()
    os.kill(int((stack.folder / "master.pids").read_text()), signal.SIGKILL)
    wait_for(lambda: stack.said("ready again"), what="ready again")
    assert stack.said("master was killed by signal 9; it is started again")
    assert len(stack.alive()) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it said nothing"),
        ("one\ntwo\n\n", "two"),
        ('{"level": "error", "message": "no such folder"}\n', "no such folder"),
        ("[1]\n", "[1]"),
    ],
)
def test_last_words(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "x.log"
    log.write_text(text)
    assert last_words(log) == words
