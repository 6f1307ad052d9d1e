"""The shipped stack in real processes: about a minute."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.process import start_time
from tests.e2e.random_model import save_random_model
from tests.waiting import free_ports, wait_for

LOCAL = str(Path(__file__).parents[3] / "stacks" / "Pulumi.local.yaml")
UP_LIMIT_S = 420
pytestmark = pytest.mark.slow


def splitstack(
    folder: Path, *arguments: str, limit_s: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def status(folder: Path) -> dict[str, Any]:
    return json.loads(splitstack(folder, "status", "-s", "local", "--json").stdout)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder that the stack runs in, of four ranks, and what `up --detach` said."""
    folder = tmp_path_factory.mktemp("project")
    (port,) = free_ports(1)
    sets = ["--set", "nnodes=4", "--set", f"inference_server.node_port={port}"]
    up = splitstack(folder, "up", "-s", LOCAL, "--detach", *sets, limit_s=UP_LIMIT_S)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield folder, up.stdout
    finally:
        splitstack(folder, "down", "-s", "local", "--now")


def test_the_curl_line_that_up_prints_works_when_pasted(running: tuple[Path, str]) -> None:
    _, said = running
    (line,) = [line for line in said.splitlines() if line.startswith("curl ")]
    request, _, body = line.partition(" -d ")
    sent = subprocess.check_output(["sh", "-c", f"printf %s {body}"])  # the shell's part of it
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(shlex.split(request)[3], content=sent, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["data"]["generated"] == "The capital of France is Paris."


def test_up_shows_the_plan_and_the_urls(running: tuple[Path, str]) -> None:
    _, said = running
    assert "demo:smollm2-135m-instruct (llama, float32) over 4 ranks" in said
    for tier in ("master", "block", "inference server"):
        assert any(
            line.startswith(tier) and "http://127.0.0.1:" in line for line in said.split("\n")
        )


def test_status_shows_every_process_ready(running: tuple[Path, str]) -> None:
    found = status(running[0])
    assert found["phase"] == "ready"
    assert found["epoch"] == 1
    assert [row["name"] for row in found["processes"]] == [
        "master",
        "stage-0",
        "stage-1",
        "stage-2",
        "stage-3",
        "proxy-pytorch-block-3",
        "inference-server",
    ]
    assert all(row["ready"] for row in found["processes"])


def test_logs_name_their_process(running: tuple[Path, str]) -> None:
    lines = splitstack(running[0], "logs", "-s", "local", "stage-2").stdout.splitlines()
    assert lines
    assert all(line.startswith("stage-2 | ") for line in lines)


def pids(folder: Path) -> dict[str, int]:
    return {row["name"]: row["pid"] for row in status(folder)["processes"]}


def ask(folder: Path, prompt: str = "The capital of France is") -> str:
    body = {"model": "pytorch-block-3", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{status(folder)['url']}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_edits_back_and_forth_start_no_process_anew(running: tuple[Path, str]) -> None:
    folder, _ = running
    before, answer = pids(folder), ask(folder)
    (folder / "other").mkdir()
    other = save_random_model(folder / "other", 8)
    sets = ("common_params.max_model_len=1024", f"common_params.model_name={other}")
    edit = splitstack(folder, "apply", *with_option(*sets), limit_s=UP_LIMIT_S)
    assert edit.returncode == 0, edit.stdout + edit.stderr
    assert f"applied: {other} serves; the inference server answers" in edit.stdout
    assert ask(folder) != answer
    assert pids(folder) == before
    back = ("common_params.model_name=demo:smollm2-135m-instruct",)
    edit = splitstack(folder, "apply", *with_option(*back), limit_s=UP_LIMIT_S)
    assert edit.returncode == 0, edit.stdout + edit.stderr
    assert (ask(folder), pids(folder)) == (answer, before)


def with_option(*sets: str) -> list[str]:
    return [part for item in sets for part in ("--set", item)]


def test_what_is_another_process_alone_is_started_anew(running: tuple[Path, str]) -> None:
    folder, _ = running
    before, answer = pids(folder), ask(folder)
    message = "proxy_blocks[0].system_message=Be brief."
    edit = splitstack(folder, "apply", *with_option(message), limit_s=UP_LIMIT_S)
    assert edit.returncode == 0, edit.stdout + edit.stderr
    now = pids(folder)
    assert [name for name in now if now[name] != before[name]] == ["proxy-pytorch-block-3"]
    assert ask(folder) == answer


def test_an_edit_that_fails_leaves_what_serves(running: tuple[Path, str]) -> None:
    folder, _ = running
    answer = ask(folder)
    # Its weights are cut short: what a plan cannot see.
    shutil.copytree(folder / "other", folder / "cut")
    (weights,) = (folder / "cut").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    sets = (f"common_params.model_name={folder / 'cut'}",)
    edit = splitstack(folder, "apply", *with_option(*sets), limit_s=UP_LIMIT_S)
    assert edit.returncode == 1
    assert "demo:smollm2-135m-instruct goes on serving" in edit.stdout
    assert ask(folder) == answer
    assert "the last edit failed: " in splitstack(folder, "status", "-s", "local").stdout
    unknown = splitstack(folder, "apply", *with_option("common_params.model_name=/nowhere"))
    assert unknown.returncode == 2
    assert "/nowhere" in unknown.stderr


def test_a_second_up_is_refused_by_name(running: tuple[Path, str]) -> None:
    second = splitstack(running[0], "up", "-s", LOCAL)
    assert second.returncode == 2
    assert "deployment local is already running on this machine" in second.stderr
    assert "edit it with: splitstack apply -s local" in second.stderr
    port = status(running[0])["url"].rpartition(":")[2]
    sets = ("--set", "deployment_name=other", "--set", f"inference_server.node_port={port}")
    other = splitstack(running[0], "up", "-s", LOCAL, *sets)
    assert other.returncode == 2
    assert f"node_port = {port}: the port is in use by deployment local" in other.stderr


def test_a_killed_stage_comes_back(running: tuple[Path, str]) -> None:
    folder, _ = running
    before = status(folder)
    (stage,) = [row for row in before["processes"] if row["name"] == "stage-3"]
    os.kill(stage["pid"], signal.SIGKILL)

    def formed_again() -> bool:
        now = status(folder)
        return now["phase"] == "ready" and now["epoch"] > before["epoch"]

    wait_for(formed_again, 120, "a new epoch")


def test_a_stopped_stage_is_killed_and_comes_back(running: tuple[Path, str]) -> None:
    """A stopped process answers no probe and ignores SIGTERM: three failures and it is killed."""
    folder, _ = running
    before = status(folder)
    (stage,) = [row for row in before["processes"] if row["name"] == "stage-1"]
    os.kill(stage["pid"], signal.SIGSTOP)
    wait_for(lambda: status(folder)["phase"] != "ready", what="not ready")

    def formed_again() -> bool:
        now = status(folder)
        return now["phase"] == "ready" and now["epoch"] > before["epoch"]

    wait_for(formed_again, 120, "a new epoch")
    assert start_time(stage["pid"]) is None


def test_a_request_survives_the_masters_death(running: tuple[Path, str]) -> None:
    """Nothing of it was delivered, so the proxy block asks the next master."""
    folder, _ = running
    before = status(folder)
    (master,) = [row for row in before["processes"] if row["name"] == "master"]
    body = {
        "model": "pytorch-block-3",
        "session_id": "survivor",
        "seq_no": 1,
        "data": {
            "mode": "completions",
            "message": "Count from one to fifty in words.",
            "generation_config": {"max_new_tokens": 80, "do_sample": False},
        },
    }
    url = f"{before['url']}/v1/infer"
    calm = httpx.post(url, json=body, timeout=120).json()["data"]["generated"]
    body["seq_no"] = 2  # the first one's answer is recorded
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, url, json=body, timeout=120)
        running_requests = 'vllm:num_requests_running{model_name="demo:smollm2-135m-instruct"} 1.0'
        wait_for(
            lambda: running_requests in httpx.get(f"{master['url']}/metrics").text, what="running"
        )
        os.kill(master["pid"], signal.SIGKILL)
        assert answer.result().json()["data"]["generated"] == calm
    assert [
        row["pid"] for row in status(folder)["processes"] if row["name"].startswith("stage")
    ] == [row["pid"] for row in before["processes"] if row["name"].startswith("stage")]


def test_nothing_outlives_a_killed_supervisor(running: tuple[Path, str]) -> None:
    """The last test of the module: the stack is gone after it."""
    folder, _ = running
    found = status(folder)
    os.kill(found["supervisor_pid"], signal.SIGKILL)
    pids = [row["pid"] for row in found["processes"]]
    wait_for(lambda: not any(start_time(pid) for pid in pids), what="every process gone")
    assert "its supervisor was killed" in status(folder)["phase"]
    down = splitstack(folder, "down", "-s", "local")
    assert (down.returncode, down.stdout.partition(" is ")[0]) == (0, "local")
    assert splitstack(folder, "status", "-s", "local").returncode == 2
