from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.local.process import start_time
from infra.local.state import (
    ProcessState,
    StackState,
    StateFolder,
    find_folder,
    find_state,
    kill_leftovers,
    supervisor_runs,
)
from infra.stack.faults import UserError

STATE = StackState("local", "d", os.getpid(), start_time(os.getpid()), "ready")


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def row(pid: int, started: int | None) -> ProcessState:
    return ProcessState("stage-0", "stage", pid, started, 0, "http://127.0.0.1:1", "x.log")


def test_state_is_read_back_and_forgotten(tmp_path: Path) -> None:
    folder = StateFolder("d", tmp_path)
    with folder.lock():
        folder.write(replace(STATE, processes=(row(1, 2),)))
        folder.make_token()
        folder.sessions("b").touch()
    assert folder.read() == replace(STATE, processes=(row(1, 2),))
    assert stat.S_IMODE(folder.token_file.stat().st_mode) == 0o600
    assert len(folder.token_file.read_text().strip()) == 64
    folder.forget()
    assert folder.read() is None
    assert not folder.token_file.exists()
    assert folder.sessions("b").exists()


def test_every_token_is_new(tmp_path: Path) -> None:
    folder = StateFolder("d", tmp_path)
    with folder.lock():
        folder.make_token()
        first = folder.token_file.read_text()
        folder.make_token()
        assert folder.token_file.read_text() != first


def test_a_second_instance_is_refused_by_name(tmp_path: Path) -> None:
    folder = StateFolder("d", tmp_path)
    with folder.lock():
        folder.write(STATE)
        with (
            pytest.raises(UserError, match=rf"deployment d is already.*process {os.getpid()}"),
            StateFolder("d", tmp_path).lock(),
        ):
            pass
    with folder.lock():
        pass


def test_a_broken_state_counts_as_none(tmp_path: Path) -> None:
    folder = StateFolder("d", tmp_path)
    with folder.lock():
        (folder.path / "state.json").write_text('{"stack": 3}')
    assert folder.read() is None


def test_a_process_is_known_by_its_pid_and_start(tmp_path: Path) -> None:
    assert supervisor_runs(STATE)
    assert not supervisor_runs(replace(STATE, started=(STATE.started or 0) - 1))
    gone = subprocess.Popen(["true"])
    started = start_time(gone.pid)
    gone.wait()
    assert not supervisor_runs(replace(STATE, pid=gone.pid, started=started))


def test_only_our_own_leftovers_are_killed() -> None:
    ours, other = sleeper(), sleeper()
    try:
        rows = (row(ours.pid, start_time(ours.pid)), row(other.pid, 1), row(2**22 + 1, 1))
        assert kill_leftovers(replace(STATE, processes=rows)) == ["stage-0"]
        assert ours.wait(60) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_a_stack_is_found_by_its_name_or_its_deployment_s(tmp_path: Path) -> None:
    for name in ("d", "e"):
        with StateFolder(name, tmp_path).lock():
            StateFolder(name, tmp_path).write(
                replace(STATE, deployment_name=name, stack="s-" + name)
            )
    assert find_state("d", tmp_path)[1].deployment_name == "d"
    assert find_state("s-e", tmp_path)[1].deployment_name == "e"
    with pytest.raises(UserError, match="no stack and no deployment x"):
        find_state("x", tmp_path)
    StateFolder("e", tmp_path).write(replace(STATE, deployment_name="e", stack="s-d"))
    with pytest.raises(UserError, match=r"several deployments \(d, e\)"):
        find_state("s-d", tmp_path)


def test_the_logs_of_an_ended_deployment_are_found(tmp_path: Path) -> None:
    folder = StateFolder("d", tmp_path)
    with folder.lock():
        folder.log("stage-0").write_text("last words\n")
    assert find_folder("d", tmp_path).logs() == [folder.log("stage-0")]


def test_without_a_name_it_is_the_only_one_that_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stack is running below"):
        find_state("", tmp_path)
    for name in ("d", "e"):
        folder = StateFolder(name, tmp_path)
        with folder.lock():
            folder.write(replace(STATE, deployment_name=name))
        if name == "d":
            assert find_state("", tmp_path)[1].deployment_name == "d"
            assert find_folder("", tmp_path).deployment_name == "d"
    with pytest.raises(UserError, match=r"several stacks run below .*: d, e"):
        find_state("", tmp_path)
