"""`platform: vllm` with the real engine, on this machine: installed, exact, hit, edited.

Minutes each, for the engine takes one to start: `make test-vllm`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from runner.models.folder import resolve_model
from tests.e2e.local_stack import LocalStack
from tests.waiting import wait_for

pytestmark = [pytest.mark.long, pytest.mark.vllm, pytest.mark.timeout(3600)]

DEMO = "demo:smollm2-135m-instruct"
BLOCK = "pytorch-block-3"
PROMPTS = ("The capital of France is", "Once upon a time", "def add(a, b):\n", "1, 2, 3,", "Water")
TOKENS, LONG = 32, 100
# An engine's start on a machine that does other things as well.
START_S = 900.0
SETS = (
    "platform=vllm",
    f"common_params.model_name={DEMO}",
    "common_params.max_model_len=1024",
    "common_params.max_concurrent_requests=8",
    "common_params.request_deadline_s=1800",
    "timeouts.stall_s=900",
)


class VllmStack(LocalStack):
    """Two ranks of it."""

    @property
    def master(self) -> str:
        return str(self.status()["master_url"])

    def topology(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.master}/topology", timeout=30, trust_env=False)
        found: dict[str, Any] = answer.json()
        return found

    def wait_ready(self, after: int = 0) -> int:
        def epoch() -> int:
            found = self.topology()
            return int(found["epoch"]) if found["ready"] and found["epoch"] > after else 0

        return int(wait_for(epoch, START_S, "an epoch that serves"))

    def keeper(self, rank: int) -> psutil.Process:
        return psutil.Process(self.processes()[f"keeper-{rank}"]["pid"])

    def engine(self, rank: int) -> list[psutil.Process]:
        """Its processes, the warden's first and the worker's last."""
        found = self.keeper(rank).children(recursive=True)
        return sorted(found, key=lambda process: "Worker" in process.name())

    def streamed(self, prompt: str, tokens: int, after: Callable[[], None] | None = None) -> str:
        """Through every tier; `after` is called once when a tenth has come."""
        body = {
            **{"model": BLOCK, "messages": [{"role": "user", "content": prompt}], "stream": True},
            **{"max_tokens": tokens, "temperature": 0, "repetition_penalty": 1.0},
        }
        text, pieces = "", 0
        url = f"{self.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=1800, trust_env=False) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                text += "".join(it["delta"].get("content") or "" for it in event["choices"])
                pieces += 1
                if after is not None and pieces == tokens // 10:
                    after()
        return text


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmStack]:
    made = VllmStack(tmp_path_factory.mktemp("vllm"), ranks=2, sets=SETS)
    made.up_limit_s = 2 * START_S
    with made:
        yield made


def ids_of_transformers(prompts: tuple[str, ...]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)  # the stack has the others
    folder = resolve_model(DEMO, weights=True).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        generated = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
        )
        found.append(generated[0, ids.shape[1] :].tolist())
    return found


def test_greedy_ids_are_transformers(stack: VllmStack) -> None:
    body = {
        **{"model": "local", "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True},
        "repetition_penalty": 1.0,
    }
    url, found = f"{stack.master}/v1/completions", []
    for prompt in PROMPTS:
        answer = httpx.post(url, json=body | {"prompt": prompt}, timeout=600, trust_env=False)
        found.append(answer.json()["choices"][0]["token_ids"])
    assert found == ids_of_transformers(PROMPTS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_hit_costs_a_pause(
    stack: VllmStack, rank: int, number: signal.Signals
) -> None:
    epoch = stack.wait_ready()
    calm = stack.streamed("Tell me of a fox.", LONG)
    before = stack.engine(0) + stack.engine(1)
    worker = stack.engine(rank)[-1]
    shared = set(os.listdir("/dev/shm"))
    hit = stack.streamed("Tell me of a fox.", LONG, lambda: worker.send_signal(number))
    assert hit == calm
    assert stack.wait_ready(epoch) > epoch
    assert not [process for process in before if process.is_running()]
    mine = {f"psm_{name[4:]}" for name in shared if name.startswith("psm_")}
    assert not {name for name in mine & set(os.listdir("/dev/shm")) if _made_by(name, before)}


def _made_by(name: str, processes: list[psutil.Process]) -> bool:
    """Nobody else on this machine has it in memory."""
    for path in Path("/proc").glob("[0-9]*/maps"):
        try:
            if name in path.read_text():
                return False
        except OSError:
            continue
    return bool(processes)


@pytest.mark.parametrize("rank", [1, 0])
def test_a_keeper_that_is_killed_leaves_nothing(stack: VllmStack, rank: int) -> None:
    epoch = stack.wait_ready()
    calm = stack.streamed("Tell me of a hen.", LONG)
    before = stack.engine(0) + stack.engine(1)
    hit = stack.streamed("Tell me of a hen.", LONG, stack.keeper(rank).kill)
    assert hit == calm
    assert stack.wait_ready(epoch) > epoch
    assert not [process for process in before if process.is_running()]


def test_another_model_comes_in_without_another_keeper(stack: VllmStack, tmp_path: Path) -> None:
    keepers = [stack.keeper(rank).pid for rank in (0, 1)]
    demo = resolve_model(DEMO, weights=True).path
    other = tmp_path / "other"
    shutil.copytree(demo, other)
    config = json.loads((other / "config.json").read_text())
    config["rope_theta"] = 5000.0
    if isinstance(config.get("rope_parameters"), dict):
        config["rope_parameters"]["rope_theta"] = 5000.0
    (other / "config.json").write_text(json.dumps(config))
    applied = stack.apply(f"common_params.model_name={other}", limit_s=2 * START_S)
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert stack.topology()["model_name"] == str(other)
    assert keepers == [stack.keeper(rank).pid for rank in (0, 1)]
    assert stack.streamed("Tell me of a cat.", 8)
