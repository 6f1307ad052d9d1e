from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from contract.signature import signing_key
from contract.specs import GroupSpec, RankPart, render
from infra.local.edit import Wanted
from infra.local.process import ProcessDefinition, start_time
from infra.local.rollout import RolloutDefinition
from infra.local.supervisor import last_words
from tests.rollout.small_master import TOKEN, SmallMaster, serves, small_master, step
from tests.waiting import free_ports, wait_for

SERVER = Path(__file__).with_name("small_server.py")
# Runs a supervisor over small servers in a process of its own, as the command line does.
SCRIPT = """
import asyncio, sys
from pathlib import Path
from infra.local import process
from infra.local.edit import read_wanted
from infra.local.supervisor import Supervisor
from infra.local.progress import Progress

folder = Path(sys.argv[1])
process.RESTART_DELAYS_S = (0.0, 0.1)
def changed(phase, reason):
    with (folder / "phases").open("a") as file:
        file.write(f"{phase}\\n")
    if supervisor.edit:
        (folder / "edit").write_text(f"{supervisor.edit.phase} {supervisor.edit.text}")
    if phase == "ready":
        (folder / "said_when_ready").write_text((folder / "output").read_text())
def read():
    return read_wanted(folder / "wanted")
supervisor = Supervisor(
    read(), Progress(), changed,
    startup_s=60.0, summary="all of it is ready", read_wanted=read,
)
sys.exit(asyncio.run(supervisor.run()))
"""


class SmallStack:
    """A supervisor process over one small server per tier; `extra` goes to the stage's."""

    def __init__(
        self,
        folder: Path,
        extra: tuple[str, ...] = (),
        rollout: RolloutDefinition | None = None,
    ) -> None:
        self.folder, self.rollout = folder, rollout
        self.definitions = [
            self.definition(tier, *(extra if tier == "stage" else ()))
            for tier in ("inference-server", "proxy-block", "master", "stage")
        ]
        self.write_wanted()
        self.output = (folder / "output").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder)], stdout=self.output, stderr=self.output
        )

    def definition(self, name: str, *extra: str, tier: str = "") -> ProcessDefinition:
        (port,) = free_ports(1)
        arguments = [str(SERVER), str(port), "--started", str(self.folder / f"{name}.pids")]
        arguments += ["--ended", str(self.folder / "ended"), "--name", name, *extra]
        file = self.folder / f"{name}.json"
        return ProcessDefinition(
            name=name,
            tier=tier or name,
            command=(sys.executable, *arguments),
            url=f"http://127.0.0.1:{port}",
            log=self.folder / f"{name}.log",
            startup_s=60.0,
            files={str(file): "{}"},
        )

    def write_wanted(self, edit: str = "") -> None:
        Wanted(tuple(self.definitions), 3600.0, self.rollout, edit).write(self.folder / "wanted")

    def apply(self, edit: str) -> str:
        """What the edit said at its end."""
        self.write_wanted(edit)
        self.process.send_signal(signal.SIGUSR1)
        file = self.folder / "edit"

        def ended() -> str:
            said = file.read_text() if file.exists() else ""
            return said if said.startswith(("done", "failed")) else ""

        said: str = wait_for(ended, what="the edit's end")
        file.unlink()
        return said

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

    def make(*extra: str, rollout: RolloutDefinition | None = None) -> SmallStack:
        made.append(SmallStack(tmp_path, extra, rollout))
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
    wait_for(lambda: not stack.alive(), what="all children gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_tiers_from_the_front(small_stack: Any, number: signal.Signals) -> None:
    stack = small_stack()
    stack.until_ready()
    stack.process.send_signal(number)
    assert stack.process.wait(60) == 0
    assert not stack.alive()
    ended = (stack.folder / "ended").read_text().split()
    assert ended == ["inference-server", "proxy-block", "master", "stage"]
    phases = (stack.folder / "phases").read_text().splitlines()
    # "starting" is told by a look that finds something not ready yet. Small servers may all answer
    # by the time of the first one, which comes after the four processes have been made.
    assert set(phases[: phases.index("ready")]) <= {"starting"}
    assert phases[-1] == "draining"


def test_a_state_that_cannot_be_written_ends_nothing_and_is_written_later(
    small_stack: Any,
) -> None:
    stack = small_stack()
    stack.until_ready()
    before = set(stack.alive())
    phases = stack.folder / "phases"
    phases.unlink()
    phases.mkdir()  # nobody can write it
    killed = int((stack.folder / "proxy-block.pids").read_text())
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: stack.said("the state cannot be written"), what="what is wrong is said")
    wait_for(lambda: len(stack.alive()) == 4, what="it is started again all the same")
    assert set(stack.alive()) & before == before - {killed}
    wait_for(lambda: stack.said("ready again"), what="ready again")
    phases.rmdir()
    wait_for(lambda: phases.is_file() and "ready" in phases.read_text(), what="written")
    assert (stack.folder / "output").read_text().count("the state cannot be written") == 1


def test_the_summary_is_said_before_the_state_is_ready(small_stack: Any) -> None:
    stack = small_stack()
    stack.until_ready()
    said = stack.folder / "said_when_ready"  # what `up --detach` has relayed when it goes
    wait_for(said.exists, what="the state ready")
    wait_for(said.read_text, what="the file written")
    assert "all of it is ready" in said.read_text()


def test_a_second_signal_does_not_wait(small_stack: Any) -> None:
    stack = small_stack()
    stack.until_ready()
    for pid in stack.alive():
        os.kill(pid, signal.SIGSTOP)  # it will not heed SIGTERM
    stack.process.send_signal(signal.SIGINT)
    wait_for(lambda: "draining" in (stack.folder / "phases").read_text(), what="draining")
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.wait(60) == 0  # an hour for each of four tiers is not waited for
    assert not stack.alive()


def test_bad_usage_at_the_start_ends_everything_with_the_process_s_own_words(
    small_stack: Any,
) -> None:
    stack = small_stack("--exit-code", "2")
    assert stack.process.wait(60) == 2
    assert stack.said("error: stage ended with exit code 2: layers = 3: no such layers")
    assert not stack.alive()


def test_what_keeps_dying_before_it_was_ready_ends_everything(small_stack: Any) -> None:
    stack = small_stack("--exit-code", "1")
    assert stack.process.wait(60) == 1
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
    wait_for(lambda: len(stack.alive()) == 4, what="all of them")


FORMER = GroupSpec("d", "demo:former", (RankPart((0, 4)),))
NEW = GroupSpec("d", "demo:new", (RankPart((0, 4)),))
SWAP = [step("preparing", "prepared"), step("serving", "loaded")]


@pytest.fixture
def group() -> Iterator[SmallMaster]:
    """What answers PUT and GET /group/spec, and the question."""
    with small_master(list(SWAP)) as running:
        yield running


def rollout_of(folder: Path, group: SmallMaster, spec: GroupSpec) -> RolloutDefinition:
    key = folder / "signing_key"
    key.write_text(signing_key(TOKEN).hex())
    names = ("group.wanted.json", "group.json", "signing_key", "reason", "rollout.log")
    wanted, served, signs, reason, log = (str(folder / name) for name in names)
    questions = ("--master", group.url)
    return RolloutDefinition(render(spec), wanted, served, signs, reason, log, 60.0, questions)


def served(folder: Path) -> str:
    return (folder / "group.json").read_text()


def test_it_is_ready_when_the_first_question_has_been_answered(
    small_stack: Any, tmp_path: Path, group: SmallMaster
) -> None:
    stack = small_stack(rollout=rollout_of(tmp_path, group, FORMER))
    stack.until_ready()
    assert len(group.questions) == 1
    assert served(tmp_path) == render(FORMER)


def test_a_first_spec_that_fails_ends_everything_and_is_not_kept(
    small_stack: Any, tmp_path: Path, group: SmallMaster
) -> None:
    group.steps = [step("failed", "failed", reason="rank 0: no such model")]
    stack = small_stack(rollout=rollout_of(tmp_path, group, FORMER))
    assert stack.process.wait(60) == 1
    assert stack.said("error: demo:former: rank 0: no such model; nothing is served")
    assert not (tmp_path / "group.json").exists()
    assert not stack.alive()


def test_a_rollout_that_cannot_be_run_ends_everything(
    small_stack: Any, tmp_path: Path, group: SmallMaster
) -> None:
    rollout = replace(rollout_of(tmp_path, group, FORMER), log=str(tmp_path))
    stack = small_stack(rollout=rollout)
    assert stack.process.wait(60) == 1
    assert stack.said("error: the rollout cannot be run: [Errno 21] Is a directory")
    assert not stack.alive()


@pytest.fixture
def edited(small_stack: Any, tmp_path: Path, group: SmallMaster) -> SmallStack:
    """A stack that serves FORMER and is about to serve NEW."""
    stack: SmallStack = small_stack(rollout=rollout_of(tmp_path, group, FORMER))
    stack.until_ready()
    stack.rollout = rollout_of(tmp_path, group, NEW)
    return stack


def test_another_model_starts_no_process_anew(
    edited: SmallStack, tmp_path: Path, group: SmallMaster
) -> None:
    before = edited.pids()
    assert edited.apply("1").startswith("done demo:new serves; the master answers")
    assert edited.pids() == before
    assert served(tmp_path) == render(NEW)


def test_what_is_another_process_is_started_anew_alone(edited: SmallStack, tmp_path: Path) -> None:
    stage = edited.definitions[-1]
    (file,) = stage.files
    edited.definitions[-1] = replace(stage, files={file: '{"threads": 2}'})
    before = edited.pids()
    assert edited.apply("1").startswith("done")
    wait_for(lambda: len(edited.pids()) == len(before) + 1, what="one more start")
    assert Path(file).read_text() == '{"threads": 2}'
    assert (tmp_path / "ended").read_text().split() == ["stage"]
    wait_for(lambda: len(edited.alive()) == 4, what="all of them")


def test_ranks_come_first_and_go_last(edited: SmallStack, tmp_path: Path) -> None:
    edited.definitions.append(edited.definition("stage-1", tier="stage"))
    assert edited.apply("1").startswith("done")
    wait_for(lambda: len(edited.alive()) == 5, what="one more")
    edited.definitions.pop()
    assert edited.apply("2").startswith("done")
    assert (tmp_path / "ended").read_text().split() == ["stage-1"]


def test_an_edit_that_fails_says_why_and_the_former_one_goes_on(
    edited: SmallStack, tmp_path: Path, group: SmallMaster
) -> None:
    before = edited.pids()
    edited.definitions.append(edited.definition("stage-1", tier="stage"))
    failed = step("failed", "prepared", reason="rank 1: its weights take 9 GB of 4 GB")
    group.steps, group.serving = [failed], serves(FORMER)
    assert edited.apply("1") == (
        "failed demo:new: rank 1: its weights take 9 GB of 4 GB; demo:former goes on serving"
    )
    assert served(tmp_path) == render(FORMER)
    assert sorted(edited.alive()) == sorted(before)
    # The next one is not held up by it.
    group.steps = list(SWAP)
    assert edited.apply("2").startswith("done")
    assert served(tmp_path) == render(NEW)


def test_an_edit_that_fails_puts_the_processes_back_as_they_were(
    edited: SmallStack, tmp_path: Path, group: SmallMaster
) -> None:
    front = edited.definitions[0]
    (file,) = front.files
    edited.definitions[0] = replace(front, files={file: '{"inference_port": 9000}'})
    failed = step("failed", "prepared", reason="rank 1: its weights take 9 GB of 4 GB")
    group.steps, group.serving = [failed], serves(FORMER)
    before = edited.pids()
    assert edited.apply("1").startswith("failed demo:new: rank 1")
    wait_for(lambda: len(edited.pids()) == len(before) + 2, what="changed, and put back")
    assert Path(file).read_text() == "{}"
    wait_for(lambda: len(edited.alive()) == 4, what="all of them")


def test_an_edit_whose_rollout_cannot_be_run_has_failed(edited: SmallStack, tmp_path: Path) -> None:
    assert edited.rollout is not None
    edited.rollout = replace(edited.rollout, log=str(tmp_path))
    assert edited.apply("1").startswith("failed the rollout cannot be run: [Errno 21]")
    wait_for(lambda: not rollouts(edited), what="no rollout left")


def test_a_stack_that_is_told_to_end_during_an_edit_starts_nothing_more(
    small_stack: Any, tmp_path: Path, group: SmallMaster
) -> None:
    gate, last_gate, ended = tmp_path / "gate", tmp_path / "last", tmp_path / "ended"
    stack = small_stack("--until", str(last_gate), rollout=rollout_of(tmp_path, group, FORMER))
    stack.definitions[0] = stack.definition("inference-server", "--until", str(gate))
    stack.until_ready()
    assert stack.apply("1").startswith("done")
    server = stack.definitions[0]
    (file,) = server.files
    stack.definitions[0] = replace(server, files={file: '{"port": 1}'})
    ended.unlink()
    stack.write_wanted("2")
    stack.process.send_signal(signal.SIGUSR1)
    wait_for(ended.exists, what="the edit's end of the server")
    stack.process.send_signal(signal.SIGINT)
    wait_for(lambda: "draining" in (tmp_path / "phases").read_text(), what="draining")
    gate.touch()
    wait_for(lambda: "stage" in ended.read_text(), what="the last tier's turn")
    last_gate.touch()
    assert stack.process.wait(60) == 0
    assert Path(file).read_text() == "{}"


def test_a_rollout_that_is_killed_is_started_again_and_follows(
    edited: SmallStack, tmp_path: Path, group: SmallMaster
) -> None:
    group.steps = [step("preparing", "fetching")]
    edited.write_wanted("1")
    edited.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: rollouts(edited), what="a rollout")
    (process,) = rollouts(edited)
    wait_for(lambda: len(group.pushed) == 2, what="the push")
    process.kill()
    wait_for(lambda: edited.said("was killed by signal 9; it is started again"), what="said")
    group.steps.append(step("serving", "loaded"))
    wait_for(lambda: (tmp_path / "edit").read_text().startswith("done"), 30, "the edit's end")
    assert served(tmp_path) == render(NEW)


def rollouts(stack: SmallStack) -> list[psutil.Process]:
    children = psutil.Process(stack.process.pid).children()
    return [one for one in children if "rollout" in one.cmdline()]


def test_a_rank_that_the_group_counts_on_stays_though_its_edit_failed(
    edited: SmallStack, group: SmallMaster
) -> None:
    """The new spec is in force, and nobody answers the question."""
    new = replace(NEW, ranks=(RankPart((0, 2)), RankPart((2, 4))))
    edited.rollout = rollout_of(edited.folder, group, new)
    edited.definitions.append(edited.definition("stage-1", tier="stage"))
    group.answer = (400, {"error": {"message": "not today"}})
    assert "not today" in edited.apply("1")
    assert len(edited.alive()) == 5
    # The former one again: it goes when it has answered.
    group.answer = (200, {"choices": [{"text": " Paris."}]})
    edited.rollout = rollout_of(edited.folder, group, FORMER)
    edited.definitions.pop()
    assert edited.apply("2").startswith("done")
    assert len(edited.alive()) == 4


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
