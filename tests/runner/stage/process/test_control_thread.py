"""One stage's process as its surroundings see it: arguments, health, signals."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.runner.running_stages import Stages
from tests.waiting import PATIENCE_S, wait_for


@pytest.fixture
def stages(small_llama: Path, tmp_path: Path) -> Iterator[Stages]:
    stages = Stages(str(small_llama), [(0, 6)], tmp_path)
    yield stages
    stages.end()


def answers(stages: Stages, path: str, timeout_s: float = PATIENCE_S) -> bool:
    try:
        return stages.health(0, path, timeout_s).status_code == 200
    except httpx.HTTPError:
        return False


def outcome(stages: Stages, *change: str) -> subprocess.CompletedProcess[str]:
    arguments = {
        "--spec": str(stages.spec_file(0)),
        "--token-file": str(stages.token_file),
    }
    arguments |= dict(zip(change[::2], change[1::2], strict=True))
    command = [sys.executable, "-m", "runner.stage"]
    for name, value in arguments.items():
        command += [name, value]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_it_lives_before_it_is_ready_and_is_ready_once_loaded(stages: Stages) -> None:
    async def work() -> None:
        async with stages.master() as master:
            await master.until_formed()

    stages.start()
    wait_for(lambda: answers(stages, "/livez"), what="alive without a master")
    assert answers(stages, "/startedz")
    answer = stages.health(0, "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": "unavailable", "reason": "the master has not let it in yet"}
    asyncio.run(work())
    assert stages.health(0, "/readyz").json() == {"status": "ok"}
    time.sleep(1.5)  # idle, and its master gone: it lives and keeps its weights
    assert answers(stages, "/livez")
    assert answers(stages, "/readyz")
    stages.signal(0, signal.SIGSTOP)
    assert not answers(stages, "/livez", timeout_s=1)
    stages.signal(0, signal.SIGCONT)
    wait_for(lambda: answers(stages, "/livez"), what="alive again")
    stages.signal(0, signal.SIGTERM)
    assert stages.processes[0].wait(60) == 0


def test_sigterm_while_it_waits_for_a_master_ends_it(stages: Stages) -> None:
    stages.start()
    wait_for(lambda: answers(stages, "/livez"), what="alive")
    stages.signal(0, signal.SIGTERM)
    assert stages.processes[0].wait(60) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("--spec", "/no/such/file"), "--spec /no/such/file: cannot be read"),
        (("--token-file", "/no/such/token"), "--token-file /no/such/token: cannot be read"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_sentence(
    stages: Stages, change: tuple[str, ...], sentence: str
) -> None:
    ended = outcome(stages, *change)
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_interface_ends_with_2_and_is_named(stages: Stages) -> None:
    document = json.loads(stages.spec_file(0).read_text())
    document["interface"] = "nope0"
    stages.spec_file(0).write_text(json.dumps(document))
    ended = outcome(stages)
    assert ended.returncode == 2
    assert "interface = 'nope0': does not exist on this machine" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("port", ["data_port", "health_port"])
def test_a_busy_port_ends_with_2_and_is_named(stages: Stages, port: str) -> None:
    number = getattr(stages.stage_specs[0], port)
    with socket.create_server(("127.0.0.1", number)):
        ended = outcome(stages)
    assert ended.returncode == 2
    assert f"127.0.0.1:{number} is in use" in ended.stderr


def test_a_named_interface_is_what_it_listens_on(stages: Stages) -> None:
    document = json.loads(stages.spec_file(0).read_text())
    document["interface"] = "lo"
    document["bind_address"] = ""
    stages.spec_file(0).write_text(json.dumps(document))
    stages.start()
    wait_for(lambda: answers(stages, "/livez"), what="alive")
    port = stages.stage_specs[0].data_port
    socket.create_connection(("127.0.0.1", port), timeout=60).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=60)
