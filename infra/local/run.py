"""One stack file's tiers as processes of this machine: up, up --detach, down."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from infra.local import machine
from infra.local.edit import read_wanted
from infra.local.fit import (
    addresses,
    check_inference_port,
    faster_dtype,
    fit,
    port_count,
)
from infra.local.prepared import prepared, with_about
from infra.local.process import die_with_parent, start_time
from infra.local.progress import Progress
from infra.local.state import (
    ProcessState,
    StackState,
    StateFolder,
    kill_leftovers,
    supervisor_runs,
)
from infra.local.supervisor import Supervisor
from infra.local.vllm_environment import engine_program
from infra.plan.lock import ModelReader, model_reader
from infra.plan.stack_plan import plan_stack
from infra.stack.config import CommonParams
from infra.stack.faults import UserError
from infra.stack.file import StackFile

# Time in which every tier says that it is ready, once the first question has been answered.
_STARTUP_S = 120.0
_POLL_S = 0.2


def run_stack(stack_file: StackFile, sets: Sequence[str] = ()) -> int:
    """Bring the stack up, keep it running, drain it on a signal; returns the exit code.

    `sets` are those that the file was read with. Raises UserError and StackConfigError before any
    process of it has been started.
    """
    folder = StateFolder(stack_file.deployment.deployment_name)
    with folder.lock():
        left = folder.read()
        if left is not None:  # a supervisor that was killed
            kill_leftovers(left)
        try:
            return _run(stack_file, sets, folder, Progress())
        finally:
            folder.forget()


def _run(
    stack_file: StackFile, sets: Sequence[str], folder: StateFolder, progress: Progress
) -> int:
    deployment = fit(stack_file.deployment)
    reader = model_reader(stack_file.lock_path)
    check_inference_port(deployment)
    engine = engine_program(deployment, progress)
    folder.clear()
    state = StackState(
        stack=stack_file.stack,
        deployment_name=deployment.deployment_name,
        pid=os.getpid(),
        started=start_time(os.getpid()),
        phase="preparing",
    )
    folder.write(state)
    common = deployment.common_params
    progress.say(f"preparing {common.model_name}")
    with _terminating_as_interrupt():
        commit = model_commit(reader, common)
    plan = plan_stack(deployment, reader)
    if note := faster_dtype(deployment):
        progress.say(f"note: {note}")
    with machine.free_ports(port_count(deployment)) as ports:
        places = addresses(deployment, ports)
    folder.make_token()
    found = prepared(folder, stack_file, sets, deployment, plan, places, commit, engine=engine)

    def changed(phase: str, reason: str) -> None:
        rows = tuple(ProcessState.of(item) for item in supervisor.processes)
        now = with_about(state, supervisor.wanted.about)
        edit = supervisor.edit
        folder.write(replace(now, phase=phase, reason=reason, processes=rows, edit=edit))

    supervisor = Supervisor(
        found.wanted,
        progress,
        changed,
        startup_s=_STARTUP_S,
        summary=found.summary,
        read_wanted=lambda: read_wanted(folder.wanted_file),
    )
    return asyncio.run(supervisor.run())


def model_commit(reader: ModelReader, common: CommonParams) -> str:
    """The commit that the model's name stands for, its files prepared: the locked one where there
    is a lock. Raises UserError."""
    locked = reader.read(common).commit if reader.lock is not None else ""
    return _prepare_model(common.model_name, locked or common.model_revision)


def _prepare_model(name: str, revision: str) -> str:
    """Have the runner fetch configuration and tokenizer (a demo model: all of it).

    Returns the commit that the name stands for now. Progress goes to our standard error. Raises
    UserError with the runner's sentence.
    """
    command = [sys.executable, "-m", "runner.models.folder", name, "--revision", revision]
    finished = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent(),
        check=False,
    )
    try:
        answer = json.loads(finished.stdout)
    except ValueError:
        raise UserError(
            f"model_name = {name!r}: {' '.join(command[1:4])} ended with code "
            f"{finished.returncode}; the cause is printed above"
        ) from None
    if "error" in answer:
        raise UserError(answer["error"])
    return str(answer["commit"])


@contextlib.contextmanager
def _terminating_as_interrupt() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that the state is removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_detached(stack_file: StackFile, sets: Sequence[str]) -> int:
    """`up` in a session of its own; its output is relayed until the stack is ready or has failed.

    Returns the exit code. Raises UserError when the deployment is already running.
    """
    folder = StateFolder(stack_file.deployment.deployment_name)
    with folder.lock():
        pass
    command = [sys.executable, "-m", "infra.cli", "up", "--stack", str(stack_file.path.absolute())]
    for item in sets:
        command += ["--set", item]
    with folder.supervisor_log.open("wb") as log:
        supervisor = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return _follow(supervisor, folder)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise


def _follow(supervisor: subprocess.Popen[bytes], folder: StateFolder) -> int:
    with folder.supervisor_log.open("rb") as log:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            code = supervisor.poll()
            state = folder.read()
            ready = state is not None and state.phase == "ready" and state.pid == supervisor.pid
            sys.stdout.write(decoder.decode(log.read()))
            sys.stdout.flush()
            if code is not None:
                return code or 1
            if ready:
                return 0
            time.sleep(_POLL_S)


def stop_stack(folder: StateFolder, state: StackState, *, now: bool, progress: Progress) -> None:
    """Drain the stack and wait until it is gone; `now` drops what is running."""
    if supervisor_runs(state):
        os.kill(state.pid, signal.SIGTERM)
        if now:
            time.sleep(_POLL_S)  # two signals at once would count as one
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGTERM)
        progress.wait_for(f"{state.deployment_name}: finishing what is running (--now drops it)")
        while supervisor_runs(state):
            time.sleep(_POLL_S)
        progress.done()
    else:
        for name in kill_leftovers(state):
            progress.say(f"{name} was left over and has been killed")
    folder.forget()
    progress.say(f"{state.deployment_name} is down; logs and sessions stay in {folder.path}")
