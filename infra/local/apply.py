"""An edit of a stack that runs here: what it is to be, handed to its supervisor and followed."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Sequence

from infra.local import machine
from infra.local.edit import DONE, RUNNING, EditState
from infra.local.fit import addresses, check_inference_port, fit, fit_as_before, port_count
from infra.local.prepared import Prepared, addresses_of, prepared
from infra.local.progress import Progress
from infra.local.run import model_commit
from infra.local.state import StackState, StateFolder, supervisor_runs
from infra.local.vllm_environment import engine_program
from infra.plan.lock import ModelReader, model_reader
from infra.plan.stack_plan import plan_stack
from infra.stack.config import DeploymentConfig
from infra.stack.faults import StackConfigError, UserError
from infra.stack.file import StackFile

_POLL_S = 0.2
# A supervisor takes an edit at once, if it can read it.
_TAKEN_WITHIN_S = 30.0
_EDITABLE = ("ready", "not ready")


def apply_edit(
    stack_file: StackFile, sets: Sequence[str], folder: StateFolder, progress: Progress
) -> int:
    """Make the stack of `folder` what the file says, and wait until it has answered.

    Returns the exit code: 1 where it did not, and then what was served before goes on. Raises
    UserError and StackConfigError before anything is touched.
    """
    with folder.lock_edit():
        state = _editable(folder)
        deployment = stack_file.deployment
        if deployment.deployment_name != state.deployment_name:
            raise UserError(
                f"deployment_name = {deployment.deployment_name!r}: runs as "
                f"{state.deployment_name!r}, and another name is another stack: splitstack down, "
                "then up"
            )
        found = _prepared(stack_file, sets, folder, state, engine_program(deployment, progress))
        found.wanted.write(folder.wanted_file)
        os.kill(state.pid, signal.SIGUSR1)
        return _follow(folder, found.wanted.id, progress)


def _editable(folder: StateFolder) -> StackState:
    state = folder.read()
    if state is None or not supervisor_runs(state):
        raise UserError(
            f"deployment {folder.deployment_name} does not run; start it with: splitstack up"
        )
    if state.phase not in _EDITABLE:
        raise UserError(
            f"deployment {folder.deployment_name} is {state.phase}; edit it once it is ready"
        )
    if state.edit is not None and state.edit.phase == RUNNING:
        raise UserError(
            f"deployment {folder.deployment_name}: an edit is being brought in already "
            f"({state.edit.text}); `splitstack status` shows when it has ended"
        )
    return state


def _prepared(
    stack_file: StackFile,
    sets: Sequence[str],
    folder: StateFolder,
    state: StackState,
    engine: str,
) -> Prepared:
    former = addresses_of(state)
    deployment = stack_file.deployment
    _check_port(deployment, state)
    reader = model_reader(stack_file.lock_path)
    commit = model_commit(reader, deployment.common_params)
    deployment = _fitted(deployment, state, reader)
    with machine.free_ports(port_count(deployment)) as ports:
        places = addresses(deployment, ports, former)
    return prepared(
        folder,
        stack_file,
        sets,
        deployment,
        plan_stack(deployment, reader),
        places,
        commit,
        edit=secrets.token_hex(8),
        engine=engine,
    )


def _check_port(deployment: DeploymentConfig, state: StackState) -> None:
    """An edit that failed may have left its server at the port that it wanted."""
    url = f"http://{machine.LOOPBACK}:{deployment.inference_server.node_port}"
    if url not in [row.url for row in state.processes]:
        check_inference_port(deployment)


def _fitted(
    deployment: DeploymentConfig, state: StackState, reader: ModelReader
) -> DeploymentConfig:
    """Cores and memory that the file does not give stay while the model fits: another figure is
    another process."""
    held = _held(state)
    try:
        kept = fit_as_before(deployment, state.about["ranks"], held)
        plan_stack(kept, reader)
    except (UserError, StackConfigError):
        return fit(deployment, held)
    return kept


def _held(state: StackState) -> int:
    """Bytes of the stages that run, which an edit may take anew."""
    pids = [row.pid for row in state.processes if row.tier == "stage" and row.pid is not None]
    return sum(map(machine.memory_of, pids))


def _follow(folder: StateFolder, edit: str, progress: Progress) -> int:
    """Until it has ended. Who is interrupted leaves the edit running."""
    taken_by = time.monotonic() + _TAKEN_WITHIN_S
    try:
        while True:
            state = folder.read()
            if state is None or not supervisor_runs(state):
                raise UserError(f"deployment {folder.deployment_name} ended during the edit")
            if state.edit is not None and state.edit.id == edit:
                if state.edit.phase != RUNNING:
                    return _ended(state.edit, progress)
                progress.wait_for(state.edit.text)
            elif time.monotonic() > taken_by:
                raise UserError(
                    f"deployment {folder.deployment_name} does not take the edit: another version "
                    "of Splitstack has started it; splitstack down, then up"
                )
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        progress.done()
        progress.say("the edit goes on; `splitstack status` shows it")
        raise


def _ended(edit: EditState, progress: Progress) -> int:
    progress.done()
    if edit.phase == DONE:
        progress.say(f"applied: {edit.text}")
        return 0
    progress.fail(edit.text)
    return 1
