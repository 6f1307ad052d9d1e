"""Every row of the table of edits: what the preview says of it, and whose pods really change."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.plan.edit_keys import RANK_KEYS, STACK_KEYS, TOKEN
from tests.infra.program_stacks import DEMO, PINNINGS, stack, vllm_stack
from tests.infra.recorded_program import (
    API_KEYS,
    PROGRAM,
    RUNNER,
    Program,
    changed_objects,
    edit_told,
    run_program,
    state_after,
    write_kubeconfig,
)
from tests.infra.recorded_program import TOKEN as GROUP_TOKEN

Stack = Mapping[str, Any]
# Two values of one key, as two stacks.
Row = Callable[[Path], tuple[Stack, Stack]]
ROLLOUT = {("ConfigMap", "small-rollout"), ("Job", "small-rollout"), ("ConfigMap", "small-spec")}
# A deadline is that of whoever passes requests on too; a rank without a part goes.
BESIDE = {
    "common_params.request_deadline_s": {"small-proxy-block", "small-inference-server"},
    "nnodes": {"small-rank-2"},
}
TABLE = STACK_KEYS | RANK_KEYS
# Pods take what was built by its digest, which the engine knows once it is built.
BUILT = {"images.platform", "images.build_arguments"}


BAKED = {"DEMO_MODEL": DEMO}
DOCKER = {"builder": "docker", "build_arguments": BAKED}
HALVES = ("0-14", "15-29")


def sized(*ranks: Mapping[str, Any], layers: tuple[str, str] = HALVES) -> list[dict[str, Any]]:
    """Two ranks with cores, memory and layers, so that nothing is derived from anything."""
    ranks = ranks or ({}, {})
    return [
        {"rank": rank, "cpu": 1, "memory": "8Gi", "layers": part, **own}
        for rank, (own, part) in enumerate(zip(ranks, layers, strict=True))
    ]


def whole(key: str, before: object, after: object, **both: Any) -> Row:
    """A key at the top of the deployment; None: not given."""

    def row(folder: Path) -> tuple[Stack, Stack]:
        always = {"per_rank_params": sized()} | both
        old, new = (
            stack(folder, **always | ({} if value is None else {key: value}))
            for value in (before, after)
        )
        return old, new

    return row


def common(key: str, after: object) -> Row:
    def row(folder: Path) -> tuple[Stack, Stack]:
        old = stack(folder, per_rank_params=sized())
        return old, old | {"common_params": old["common_params"] | {key: after}}

    return row


def another_engine(folder: Path) -> tuple[Stack, Stack]:
    old = vllm_stack(folder) | {"platform": "torch"}
    return old, old | {"platform": "vllm"}


def of_vllm(key: str, after: object) -> Row:
    def row(folder: Path) -> tuple[Stack, Stack]:
        old = vllm_stack(folder)
        return old, old | {"common_params": old["common_params"] | {key: after}}

    return row


def of_rank_1(key: str, before: object, after: object, pinning: str = "none", **own: Any) -> Row:
    """A key of rank 1; `own` are others of its keys."""
    devices = PINNINGS[pinning] if pinning != "none" else [{}, {}]
    old, new = (sized(devices[0], {**devices[1], **own, key: value}) for value in (before, after))
    return whole("per_rank_params", old, new, gpu_pinning=pinning)


def another_model(folder: Path) -> tuple[Stack, Stack]:
    (folder / "model").mkdir()
    config = PROGRAM.parent / "plan" / "demo_model_config.json"
    shutil.copy(config, folder / "model" / "config.json")
    return common("model_name", str(folder / "model"))(folder)


def another_cluster(folder: Path) -> tuple[Stack, Stack]:
    """Rank 1 moves to where rank 2 is."""
    clusters = {name: {"kubeconfig": str(write_kubeconfig(folder, name))} for name in ("a", "b")}

    def ranks(*names: str) -> list[dict[str, Any]]:
        return [
            {"rank": rank, "cluster_id": name, "advertise_address": f"203.0.113.{rank}"}
            for rank, name in enumerate(names)
        ]

    both = {"clusters": clusters, "rank_0_cluster_id": "a", "multi_cluster": True, "nnodes": 3}
    row = whole("per_rank_params", ranks("a", "a", "b"), ranks("a", "b", "b"), **both)
    return row(folder)


def built(before: Mapping[str, Any], after: Mapping[str, Any]) -> Row:
    image = {"common_params": {"model_name": DEMO, "image": "registry.test/runner:1"}}
    return whole("images", {**DOCKER, **before}, {**DOCKER, **after}, **image)


def built_instead(folder: Path) -> tuple[Stack, Stack]:
    old = stack(folder, per_rank_params=sized())
    image = old["common_params"] | {"image": "registry.test/runner:1"}
    return old, old | {"images": DOCKER, "common_params": image}


ROWS: dict[str, Row] = {
    "common_params.request_deadline_s": common("request_deadline_s", 30),
    "common_params.max_concurrent_requests": common("max_concurrent_requests", 8),
    "common_params.prefill_token_budget": common("prefill_token_budget", 64),
    "common_params.load_timeout_s": common("load_timeout_s", 60),
    "timeouts.swap_drain_s": whole("timeouts", {}, {"swap_drain_s": 0}),
    "common_params.model_name": another_model,
    "common_params.model_revision": common("model_revision", "v2"),
    "common_params.dtype": common("dtype", "bfloat16"),
    "common_params.max_model_len": common("max_model_len", 512),
    "timeouts.stall_s": whole("timeouts", {"create_s": 60}, {"stall_s": 60}),
    "nnodes": whole("nnodes", 3, 2, per_rank_params=[]),
    "pod_template": whole("pod_template", {}, {"annotations": {"mesh.test/inject": "true"}}),
    "extra_env": whole("extra_env", {}, {"A": "1"}),
    "ca_bundle": whole("ca_bundle", {}, {"config_map": "site"}),
    "model_cache": whole("model_cache", None, {"mode": "own-claim", "size": "1Gi"}),
    "tolerations": whole("tolerations", [], [{"key": "gpu", "operator": "Exists"}]),
    "priority_class": whole("priority_class", "", "high"),
    "image_pull_secrets": whole("image_pull_secrets", [], ["registry"]),
    "runtime_class": whole(
        "runtime_class",
        "nvidia",
        "other",
        gpu_pinning="visible-devices",
        per_rank_params=PINNINGS["visible-devices"],
    ),
    "deployment_name": whole("deployment_name", "small", "other"),
    "common_params.image": common("image", RUNNER.replace("runner", "other")),
    "images.builder": built_instead,
    "images.platform": built({}, {"platform": "linux/arm64"}),
    "images.build_arguments": built({}, {"build_arguments": BAKED | {"TORCH": "cu126"}}),
    "common_params.master_port": common("master_port", 3100),
    "platform": another_engine,
    "common_params.tensor_parallel": of_vllm("tensor_parallel", 3),
    "common_params.gpu_memory_utilization": of_vllm("gpu_memory_utilization", 0.5),
    "common_params.extra_engine_args": of_vllm("extra_engine_args", ["--seed", "1"]),
    "gpu_pinning": whole(
        "gpu_pinning", "none", "resource", per_rank_params=sized({"node_id": "a"}, {"node_id": "b"})
    ),
    "namespace": whole("namespace", "splits", "elsewhere"),
    "workload": whole("workload", "pod", "statefulset"),
    TOKEN: whole("deployment_name", "small", "small"),
    "layers": whole("per_rank_params", sized(), sized(layers=("0-9", "10-29"))),
    "device_memory": of_rank_1("device_memory", None, "8Gi", "resource"),
    "cpu": of_rank_1("cpu", 1, 2),
    "memory": of_rank_1("memory", "8Gi", "9Gi"),
    "node_id": of_rank_1("node_id", "", "n2"),
    "cluster_id": another_cluster,
    "nvidia_visible_devices": of_rank_1("nvidia_visible_devices", "2", "3", "visible-devices"),
    "cuda_visible_devices": of_rank_1(
        "cuda_visible_devices", "0", "1", "visible-devices", nvidia_visible_devices="2,3"
    ),
    "device_uuid": of_rank_1("device_uuid", "GPU-2c3d", "GPU-4e5f", "dra"),
    "device_class": of_rank_1("device_class", "", "mig.nvidia.com", "dra"),
    "device_selectors": of_rank_1("device_selectors", [], ["device.driver == 'x'"], "dra"),
    "placement": of_rank_1("placement", {}, {"node_selector": {"disk": "fast"}}),
    "master": whole("master", {}, {"cpu": 2}),
    "nccl_socket_ifname": of_rank_1("nccl_socket_ifname", "", "eth1"),
    "advertise_address": of_rank_1("advertise_address", "", "10.0.0.1"),
}


def test_no_row_is_missing():
    assert ROWS.keys() == TABLE.keys()


def edited(key: str, folder: Path) -> tuple[Program, Program]:
    old, new = ROWS[key](folder)
    tokens = [GROUP_TOKEN, GROUP_TOKEN[::-1] if key == TOKEN else GROUP_TOKEN]
    first, second = ({"group_token": token, "api_keys": API_KEYS} for token in tokens)
    before = run_program(old, secrets=first)
    return before, run_program(new, secrets=second, state=state_after(before))


def kinds(program: Program) -> set[str]:
    """Of change, that the preview has a line for."""
    return set(re.findall(r"^ *(free|swap|pod|all pods): ", edit_told(program), re.MULTILINE))


def ranks_that_stay(before: Program, after: Program) -> range:
    """Those that both have a part for."""
    return range(min(len(found.outputs["ranks"]) for found in (before, after)))


def replaced(before: Program, after: Program) -> set[int]:
    """The ranks whose pods the engine would take away for others."""

    def rank_pod(found: Program, rank: int) -> tuple[object, ...]:
        pod = found.rank(rank)
        rooms = [it.replacement_trigger for it in found.resources if it.urn in pod.replace_with]
        return pod.urn, pod.properties, pod.cluster, pod.replacement_trigger, rooms

    return {
        rank
        for rank in ranks_that_stay(before, after)
        if rank_pod(before, rank) != rank_pod(after, rank)
    }


def images(found: Program) -> list[Mapping[str, Any]]:
    return [item.properties for item in found.resources if item.kind.startswith("docker:")]


@pytest.mark.parametrize("key", ROWS)
def test_what_an_edit_costs(key, tmp_path):
    before, after = edited(key, tmp_path)
    kind = TABLE[key]
    assert kinds(after) == {kind}, edit_told(after)
    pods = set(ranks_that_stay(before, after))
    if kind == "pod" and key in RANK_KEYS:
        pods = {0} if key == "master" else {1}
    if key in BUILT:
        assert images(before) != images(after)
    else:
        assert replaced(before, after) == (set() if kind in ("free", "swap") else pods)


@pytest.mark.parametrize("key", [key for key in ROWS if TABLE[key] in ("free", "swap")])
def test_what_the_group_serves_is_in_no_rank(key, tmp_path):
    before, after = edited(key, tmp_path)
    touched = changed_objects(before, after)
    beside = {name for _, name in touched - ROLLOUT}
    assert touched >= ROLLOUT
    assert beside == BESIDE.get(key, set())


def test_memory_in_which_the_model_no_longer_fits_is_told_with_both_figures(tmp_path):
    parts = ("0-26", "27-29")
    old = sized({"memory": "1450Mi"}, {"memory": "20Gi"}, layers=parts)
    new = [{key: value for key, value in rank.items() if key != "memory"} for rank in old]
    model = {"model_name": DEMO, "image": RUNNER}
    short, long = (model | {"max_model_len": tokens} for tokens in (64, 8192))
    before = run_program(stack(tmp_path, per_rank_params=old, common_params=short))
    grown = stack(tmp_path, per_rank_params=new, common_params=long)
    after = run_program(grown, state=state_after(before))
    said = " ".join(" ".join(after.messages).split())
    told = r"rank 0 gets ([\d.]+ GB) of memory instead of 1\.5 GB, in which the model does not fit"
    note = re.search(told, said)
    assert note is not None
    assert kinds(after) == {"swap", "pod"}
    assert f"pod: memory of rank 0 1.5 GB -> {note[1]}. The pod of rank 0" in said
    assert replaced(before, after) == {0}
