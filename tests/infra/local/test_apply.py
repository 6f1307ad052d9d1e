from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from infra.local import apply
from infra.local.edit import EditState, Wanted, read_wanted
from infra.local.process import start_time
from infra.local.progress import Progress
from infra.local.state import ProcessState, StackState, StateFolder
from infra.stack.config import DeploymentConfig
from infra.stack.faults import UserError

STATE = StackState("local", "local", os.getpid(), start_time(os.getpid()), "ready")


def with_server(port: int) -> StackState:
    """A stack whose inference server is at that port."""
    url = f"http://127.0.0.1:{port}"
    server = ProcessState("inference-server", "inference-server", 1, 1, 0, url, "")
    return replace(STATE, processes=(server,))


def test_the_port_may_be_that_of_the_stack_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        deployment = DeploymentConfig.model_validate(
            {
                "deployment_name": "local",
                "nnodes": 1,
                "common_params": {"model_name": "demo:smollm2-135m-instruct"},
                "inference_server": {"node_port": port},
            }
        )
        apply._check_port(deployment, with_server(port))
        with pytest.raises(UserError, match=f"node_port = {port}: the port is in use"):
            apply._check_port(deployment, with_server(1))


def test_a_supervisor_that_does_not_take_an_edit_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "_TAKEN_WITHIN_S", 0.1)
    folder = StateFolder("local", tmp_path)
    folder.path.mkdir()
    folder.write(replace(STATE, edit=EditState("an earlier one", "done")))
    with pytest.raises(UserError, match="local does not take the edit: another version"):
        apply._follow(folder, "this one", Progress())


def test_what_is_handed_over_is_read_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "wanted"
    wanted = Wanted((), 600.0, None, "1", {"sets": ["nnodes=2"]})
    wanted.write(file)
    assert read_wanted(file) == wanted
    file.write_text('{"definitions": [], "of": "another version"}')
    assert read_wanted(file) is None
