"""The sorting of an edit: every row of its table, and what the preview says of each kind."""

from __future__ import annotations

from typing import Any

import pytest

from infra.plan.applied import Applied, applied, read_applied
from infra.plan.edit_keys import RANK_KEYS, STACK_KEYS
from infra.plan.edits import Change, edit_lines, sort_edit, wants_room
from infra.plan.layers import RankPlan
from infra.stack.file import parse_deployment

TOKEN = "a token of these tests"
GIB = 2**30


def stack(
    *,
    ranks: int = 2,
    own: dict[int, dict[str, Any]] | None = None,
    common: dict[str, Any] | None = None,
    layers: int = 30,
    token: str = TOKEN,
    **changes: Any,
) -> Applied:
    """What would be kept of a stack of `ranks` CPU ranks with 1 core and 2 GiB each."""
    params = [
        {"rank": rank, "cpu": 1, "memory": "2Gi", **(own or {}).get(rank, {})}
        for rank in range(ranks)
    ]
    mapping: dict[str, Any] = {
        "deployment_name": "small",
        "nnodes": ranks,
        "common_params": {"model_name": "some/model", "image": "r.test/runner", **(common or {})},
        "per_rank_params": params,
        "proxy_blocks": [{"block_id": "block"}],
    }
    deployment = parse_deployment(mapping | changes)
    share = layers // ranks
    plan = [
        RankPlan(rank, (rank * share, (rank + 1) * share), None, None, None, None, None)
        for rank in range(ranks)
    ]
    return applied(deployment, plan, token)


def sorted_edit(new: Applied, old: Applied | None = None) -> list[tuple[str, str, int | None]]:
    return [(it.kind, it.key, it.rank) for it in sort_edit(old or stack(), new)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("request_deadline_s", 30),
        ("max_concurrent_requests", 8),
        ("prefill_token_budget", 64),
        ("load_timeout_s", 60),
    ],
)
def test_limits_are_free(key, value):
    (change,) = sort_edit(stack(), stack(common={key: value}))
    assert (change.kind, change.key, change.after) == ("free", f"common_params.{key}", value)


def test_the_limit_of_a_stall_is_in_every_rank_s_file():
    assert sorted_edit(stack(timeouts={"stall_s": 5})) == [("pod", "timeouts.stall_s", None)]


def test_the_time_to_drain_is_free():
    (change,) = sort_edit(stack(), stack(timeouts={"swap_drain_s": 5}))
    assert (change.kind, change.key, change.after) == ("free", "timeouts.swap_drain_s", 5)
    assert edit_lines([change], 2) == [
        "free: timeouts.swap_drain_s - -> 5. Taken between two steps; nothing is away"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_name", "other/model"),
        ("model_revision", "v2"),
        ("dtype", "bfloat16"),
        ("max_model_len", 512),
    ],
)
def test_what_is_served_is_a_swap(key, value):
    assert sorted_edit(stack(common={key: value})) == [("swap", f"common_params.{key}", None)]


def test_the_main_branch_by_name_is_no_edit():
    assert sorted_edit(stack(common={"model_revision": "main"})) == []


def test_other_layers_are_a_swap_whoever_chose_them():
    found = sort_edit(stack(), stack(layers=20))
    assert found == [
        Change("swap", "layers", "0-14", "0-9", 0),
        Change("swap", "layers", "15-29", "10-19", 1),
    ]


def test_device_memory_is_a_swap():
    nodes: dict[int, dict[str, Any]] = {0: {"node_id": "n1"}, 1: {"node_id": "n2"}}
    old = stack(gpu_pinning="resource", own=nodes)
    new = stack(gpu_pinning="resource", own=nodes | {1: {**nodes[1], "device_memory": "8Gi"}})
    assert sorted_edit(new, old) == [("swap", "device_memory", 1)]


@pytest.mark.parametrize("ranks", [1, 3])
def test_more_and_fewer_ranks_are_a_swap(ranks):
    kinds = {kind for kind, _, _ in sorted_edit(stack(ranks=ranks))}
    assert kinds == {"swap"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu", 2),
        ("memory", "3Gi"),
        ("node_id", "n2"),
        ("nccl_socket_ifname", "eth1"),
        ("advertise_address", "10.0.0.1"),
    ],
)
def test_what_one_rank_has_is_its_pod(key, value):
    assert sorted_edit(stack(own={1: {key: value}})) == [("pod", key, 1)]


@pytest.mark.parametrize(
    ("mode", "key", "values"),
    [
        ("visible-devices", "nvidia_visible_devices", ("0", "1")),
        ("dra", "device_uuid", ("GPU-0a", "GPU-0b")),
    ],
)
def test_another_device_is_its_pod(mode, key, values):
    first = {"node_id": "n1", key: "7" if mode == "visible-devices" else "GPU-7"}
    old, new = (
        stack(gpu_pinning=mode, own={0: first, 1: {"node_id": "n1", key: value}})
        for value in values
    )
    assert sorted_edit(new, old) == [("pod", key, 1)]


@pytest.mark.parametrize(
    "change",
    [
        {"extra_env": {"A": "1"}},
        {"model_cache": {"mode": "own-claim", "size": "1Gi"}},
        {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
        {"priority_class": "high"},
        {"image_pull_secrets": ["registry"]},
    ],
)
def test_what_every_pod_has_is_each_rank_s_pod(change):
    assert sorted_edit(stack(**change)) == [("pod", next(iter(change)), None)]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"common": {"image": "r.test/other"}}, "common_params.image"),
        ({"common": {"master_port": 3100}}, "common_params.master_port"),
        ({"images": {"build_arguments": {"TORCH": "cu126"}}}, "images.build_arguments"),
        ({"images": {"platform": "linux/arm64"}}, "images.platform"),
        ({"namespace": "elsewhere"}, "namespace"),
        ({"workload": "statefulset"}, "workload"),
        ({"deployment_name": "other"}, "deployment_name"),
        ({"token": "another token of these tests"}, "splitstack:group_token"),
    ],
)
def test_what_all_ranks_share_is_all_pods(changes, key):
    old = stack(workload="pod")
    assert sorted_edit(stack(**{"workload": "pod"} | changes), old) == [("all pods", key, None)]


def test_another_pinning_is_all_pods():
    devices = {rank: {"node_id": "n1"} for rank in range(2)}
    new = stack(gpu_pinning="resource", own=devices)
    assert sorted_edit(new, stack(own=devices)) == [("all pods", "gpu_pinning", None)]


def test_fewer_and_larger_ranks_at_once_are_all_pods():
    old, new = stack(ranks=3), stack(own={rank: {"cpu": 1.5} for rank in range(2)})
    assert wants_room(old, new)
    found = sorted_edit(new, old)
    assert ("all pods", "nnodes", None) in found
    assert ("pod", "cpu", 1) in found


def test_fewer_and_smaller_ranks_are_not():
    old, new = stack(ranks=3), stack(own={0: {"cpu": 0.5, "memory": "1Gi"}})
    assert not wants_room(old, new)
    assert "all pods" not in {kind for kind, _, _ in sorted_edit(new, old)}


def test_the_tiers_in_front_are_no_edit_of_the_group():
    changes: dict[str, Any] = {
        "proxy_blocks": [{"block_id": "block", "system_message": "Be brief."}],
        "inference_server": {"node_port": 31000},
        "timeouts": {"create_s": 60},
    }
    assert sorted_edit(stack(**changes)) == []


def test_what_is_kept_is_read_back_and_tells_no_token():
    kept = stack()
    assert read_applied(kept.to_text()) == kept
    assert TOKEN not in kept.to_text()
    assert kept.stack.keys() == STACK_KEYS.keys()
    assert kept.ranks[0].keys() == RANK_KEYS.keys()


def test_keys_of_another_version_are_left_out():
    old = stack()
    known = {key: value for key, value in old.stack.items() if key != "workload"}
    older = Applied(known | {"gone": 1}, old.ranks)
    assert sorted_edit(stack(workload="statefulset"), older) == []


def test_the_preview_has_one_line_for_each_kind():
    old = stack(ranks=3)
    new = stack(
        ranks=3,
        own={1: {"memory": "4Gi", "node_id": "n2"}},
        common={"model_name": "other/model", "request_deadline_s": 30},
        layers=60,
        extra_env={"PASSWORD": "hidden"},
        token="another token of these tests",
    )
    lines = edit_lines(sort_edit(old, new), 3)
    assert [line.partition(":")[0] for line in lines] == ["free", "swap", "pod", "all pods"]
    assert "request_deadline_s 600 -> 30. Taken between two steps" in lines[0]
    assert "model_name some/model -> other/model; layers of rank 0 0-9 -> 0-19, rank 1" in lines[1]
    assert "memory of rank 1 2.1 GB -> 4.3 GB; node_id of rank 1 - -> n2" in lines[2]
    assert "extra_env" in lines[2]
    assert "Every rank's pod" in lines[2]
    assert lines[3].startswith("all pods: splitstack:group_token. Every rank's pod is replaced")
    assert "hidden" not in "".join(lines)
    assert TOKEN not in "".join(lines)


def test_one_rank_s_pod_is_named():
    (line,) = edit_lines(sort_edit(stack(), stack(own={1: {"cpu": 2}})), 2)
    assert line == (
        "pod: cpu of rank 1 1 -> 2. The pod of rank 1 is replaced: the model is away until loaded "
        "there; the other ranks keep theirs"
    )
