"""The master as a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.models import DEMO_MODEL
from contract.specs import GroupSpec, MasterSpec, render
from tests.runner.master.serving import DEPLOYMENT, group_spec
from tests.waiting import free_ports, wait_for

IMPORTED = """
import sys
import runner.master.__main__
print([name for name in ("torch", "transformers", "numpy") if name in sys.modules])
"""


FAULTY = """
import asyncio, math, sys
from pathlib import Path
from runner.master import __main__, own_fault
from runner.master.group.group import Group

async def live(group):
    await asyncio.sleep(0.1)
    math.sqrt(-1.0)

Group._live = live
own_fault.TERMINATION_LOG = Path(sys.argv.pop(1))
sys.exit(__main__.main())
"""


@pytest.fixture
def spec() -> MasterSpec:
    master_port, http_port = free_ports(2)
    return MasterSpec(
        DEPLOYMENT, bind_address="127.0.0.1", master_port=master_port, http_port=http_port
    )


def start(
    folder: Path,
    spec: MasterSpec | str,
    program: tuple[str, ...] = ("-m", "runner.master"),
    group: GroupSpec | str | None = None,
) -> subprocess.Popen[str]:
    """`group` "" is no file."""
    served = group_spec(model_name=DEMO_MODEL) if group is None else group
    (folder / "master.json").write_text(spec if isinstance(spec, str) else render(spec))
    if served:
        text = served if isinstance(served, str) else render(served)
        (folder / "group.json").write_text(text)
    (folder / "token").write_text("0123456789abcdef")
    command = [sys.executable, *program, "--spec", str(folder / "master.json")]
    command += ["--group-spec", str(folder / "group.json")]
    return subprocess.Popen(
        [*command, "--token-file", str(folder / "token")], stderr=subprocess.PIPE, text=True
    )


def answer(url: str) -> httpx.Response | None:
    try:
        return httpx.get(url)
    except httpx.TransportError:
        return None


@pytest.fixture
def master(tmp_path: Path, spec: MasterSpec) -> Iterator[subprocess.Popen[str]]:
    process = start(tmp_path, spec)
    wait_for(lambda: answer(f"http://127.0.0.1:{spec.http_port}/livez"))
    yield process
    process.kill()
    process.communicate()


def test_it_imports_neither_torch_nor_transformers_nor_numpy() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_running_process_maps_no_torch(master: subprocess.Popen[str]) -> None:
    libraries = Path(f"/proc/{master.pid}/maps").read_text()
    assert "tokenizers" in libraries
    assert "libtorch" not in libraries
    assert "numpy" not in libraries


def test_without_its_stages_it_lives_is_not_ready_and_says_who_is_missing(
    master: subprocess.Popen[str], spec: MasterSpec
) -> None:
    url = f"http://127.0.0.1:{spec.http_port}"
    response = httpx.get(f"{url}/readyz")
    assert response.status_code == 503
    assert "rank 0" in response.json()["reason"]
    body = {"model": DEMO_MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    refused = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert refused.status_code == 503
    assert "rank 0" in refused.json()["error"]["message"]
    assert httpx.get(f"{url}/metrics").status_code == 200
    assert httpx.get(f"{url}/topology").json()["ready"] is False


def test_sigterm_ends_it_with_zero(master: subprocess.Popen[str]) -> None:
    master.send_signal(signal.SIGTERM)
    assert master.wait(60) == 0


@pytest.mark.parametrize("container", [True, False])
def test_a_fault_of_its_own_ends_it_with_one_and_says_which(
    tmp_path: Path, spec: MasterSpec, container: bool
) -> None:
    message = tmp_path / "termination-log"
    if container:
        message.write_text("of the life before")
    process = start(tmp_path, spec, ("-c", FAULTY, str(message)))
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1
    [line] = [line for line in text.splitlines() if '"critical"' in line]
    assert "ValueError: math domain error" in json.loads(line)["trace"]
    assert message.exists() == container
    if container:
        assert message.read_text().startswith("Traceback")
        assert message.read_text().endswith("ValueError: math domain error\n")


@pytest.mark.parametrize("port", ["master_port", "http_port"])
def test_a_busy_port_is_named_in_one_sentence(tmp_path: Path, spec: MasterSpec, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        changes: Any = {port: taken}
        process = start(tmp_path, replace(spec, **changes))
        _, text = process.communicate(timeout=60)
    assert process.returncode == 2
    [line] = [line for line in text.splitlines() if not line.startswith("{")]
    assert f":{taken} is in use" in line


def test_a_model_that_cannot_be_had_does_not_end_it(tmp_path: Path, spec: MasterSpec) -> None:
    """Its file is of an `up` long ago. It says why once a stage has come, and takes another."""
    process = start(tmp_path, spec, group=group_spec(model_name="/no/such/folder"))
    try:
        url = f"http://127.0.0.1:{spec.http_port}"
        wait_for(lambda: answer(f"{url}/livez"))
        assert httpx.get(f"{url}/readyz?self").status_code == 200
    finally:
        process.kill()
        process.communicate()


def test_a_broken_spec_is_named(tmp_path: Path) -> None:
    process = start(tmp_path, '{"deployment_name": 5, "nonsense": 1}')
    _, text = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "nonsense: unknown key" in text
    assert "deployment_name = 5: must be a string" in text
