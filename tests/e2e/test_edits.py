"""The model of a running stack is edited: nobody's answer is lost, mixed or another's, whatever is
killed meanwhile."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from contract.models import DEMO_MODEL
from contract.specs import GroupSpec, load, render
from tests.e2e.edited_stack import BLOCK, EditedStack, ranks
from tests.e2e.random_model import save_random_model
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

VICTIMS = ("master", "stage-0", "stage-1", "rollout")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two architectures."""
    llama = save_random_model(tmp_path_factory.mktemp("llama"), 8)
    return llama, save_random_model(tmp_path_factory.mktemp("gpt2"), 4, "gpt2")


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]
) -> Iterator[EditedStack]:
    with EditedStack(tmp_path_factory.mktemp("project"), models) as stack:
        for model in (*models[1:], models[0]):
            stack.serve(model)
        first, second = (stack.calm[model] for model in models)
        assert not any(first[prompt].texts == second[prompt].texts for prompt in first)
        yield stack


def test_nobody_s_answer_is_lost_or_mixed_over_edits_back_and_forth(
    stack: EditedStack, models: tuple[str, str]
) -> None:
    before = stack.process_ids()

    def edits() -> None:
        for model in (models[1], models[0], models[1], models[0]):
            stack.serve(model)

    found = stack.while_asked(edits)
    assert {stack.model_of(*item) for item in found} == set(models)
    assert stack.process_ids() == before
    swap = stack.group()["swap"]
    assert (swap["phase"], [rank["loaded_ahead"] for rank in swap["ranks"]]) == (
        "serving",
        [True, True],
    )


def test_other_ranks_and_other_layers_are_edits_like_another_model(
    stack: EditedStack, models: tuple[str, str]
) -> None:
    before = stack.process_ids()

    def edits() -> None:
        stack.change(
            f"common_params.model_name={models[0]}",
            "nnodes=3",
            f"per_rank_params={ranks('', '', '')}",
        )
        assert stack.process_ids().keys() - before.keys() == {"stage-2"}
        assert len(stack.group()["serving"]["spec"]["ranks"]) == 3
        stack.change(f"per_rank_params={ranks('0-0', '1-5', '6-7')}")
        parts = [rank["layers"] for rank in stack.group()["serving"]["spec"]["ranks"]]
        assert parts == [[0, 1], [1, 6], [6, 8]]
        stack.change("nnodes=2", f"per_rank_params={ranks('', '')}")

    found = stack.while_asked(edits)
    assert {stack.model_of(*item) for item in found} == {models[0]}
    assert stack.process_ids() == before
    assert stack.served() == models[0]


def test_a_second_push_while_one_is_brought_in_is_refused_by_name(
    stack: EditedStack, models: tuple[str, str], tmp_path: Path
) -> None:
    first, second = models
    # As long as it runs, the old weights are not let go.
    body = {"model": BLOCK, "prompt": "One", "max_tokens": 900, "ignore_eos": True, "n": 16}
    body |= {"stream": True, "temperature": 0}
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.stream("POST", f"{stack.url}/v1/completions", json=body, timeout=180) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        edit = pool.submit(stack.apply, f"common_params.model_name={second}")
        wait_for(lambda: running_phase(stack) == "draining", 60, "draining")
        again = stack.apply("common_params.max_model_len=512")
        assert again.returncode == 2
        said = " ".join(again.stderr.split())
        assert "another `splitstack apply` of deployment local runs (draining: what runs is" in said
        assert f"before {second} is loaded)" in said
        wanted = replace(load(stack.folder / "group.json", GroupSpec), max_model_len=512)
        assert wanted.model_name == first
        pushed = push(stack, wanted, tmp_path)
        assert pushed.returncode == 1
        digest = stack.group()["swap"]["spec_hash"][:12]
        assert f"the master refuses the spec: spec {digest} ({second}) is being" in pushed.stderr
        assert list(filter(None, lines))[-1] == "data: [DONE]"  # by the old model
        done = edit.result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.served() == second


def running_phase(stack: EditedStack) -> str:
    swap = stack.group()["swap"]
    return "" if swap is None else str(swap["phase"])


def push(stack: EditedStack, spec: GroupSpec, folder: Path) -> subprocess.CompletedProcess[str]:
    """As the cluster's Job does."""
    file = folder / "spec.json"
    file.write_text(render(spec))
    key = str(stack.signing_key)
    command = [sys.executable, "-m", "rollout", "--spec", str(file), "--signing-key-file", key]
    command += ["--master", stack.master(), "--stall-s", "30"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "edits", [5, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_whatever_is_killed_one_of_the_two_serves_and_the_next_edit_comes(
    stack: EditedStack, models: tuple[str, str], edits: int
) -> None:
    chance = random.Random(edits)
    began = time.monotonic()
    stack.serve(models[0])
    stack.serve(models[1])
    usual_s = (time.monotonic() - began) / 2
    told = []

    def kill_and_look() -> None:
        for turn in range(edits):
            model = models[turn % 2]
            # Each of them in turn, so that few edits have seen all; the last one nobody.
            victim = (*VICTIMS, "nobody")[turn % (len(VICTIMS) + 1)]
            kill = stack.aim_at(victim)
            with ThreadPoolExecutor(1) as pool:
                edit = pool.submit(stack.apply, f"common_params.model_name={model}")
                time.sleep(chance.uniform(0.2, 1.0) * usual_s)
                kill()
                done = edit.result()
            told.append((turn, victim, done.returncode, done.stdout[-300:], done.stderr[-300:]))
            assert done.returncode in (0, 1), told
            assert stack.served() in models, told
            if done.returncode == 0:
                assert stack.served() == model, told

    found = stack.while_asked(kill_and_look, losing=True)
    assert {stack.model_of(*item) for item in found} <= set(models)
    for model in models:
        stack.serve(model)
        assert stack.served() == model


def test_a_model_that_has_gone_meanwhile_is_edited_away(
    stack: EditedStack, models: tuple[str, str], tmp_path: Path
) -> None:
    """Every process has died since, so that nobody has it in memory."""
    gone = save_random_model(tmp_path, 8)
    stack.change(f"common_params.model_name={gone}")
    for file in Path(gone).iterdir():
        file.unlink()
    for name in ("master", "stage-0", "stage-1"):
        stack.aim_at(name)()
    wait_for(lambda: "no config.json" in stack.reason(), 60, "the reason")
    stack.serve(models[0])
    assert stack.served() == models[0]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_of_a_thousand_requests_none_is_lost_over_twenty_edits(
    tmp_path: Path, models: tuple[str, str]
) -> None:
    """The demo model, and one of another architecture."""
    pair = DEMO_MODEL, models[1]
    with EditedStack(tmp_path, pair) as stack:
        stack.serve(pair[1])
        stack.serve(pair[0])

        def edits() -> None:
            for turn in range(20):
                stack.serve(pair[(turn + 1) % 2])

        found = stack.while_asked(edits, least=1000)
        assert len(found) >= 1000
        assert {stack.model_of(*item) for item in found} == set(pair)
