"""A deployment fitted to clusters: requests of ranks, and where processes meet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infra.cluster.fit import addresses, fit, plan_on_clusters, rank_clusters, stack_places
from infra.plan.applied import Applied
from infra.plan.layers import RankPlan
from infra.stack.faults import StackConfigError
from tests.infra.deployments import parsed

GIB = 2**30


def plan(*weights: int | None) -> list[RankPlan]:
    return [
        RankPlan(rank, (rank, rank + 1), size, None, None, None, None)
        for rank, size in enumerate(weights)
    ]


def test_ranks_that_name_no_memory_get_what_is_planned():
    ranks = [replace(rank, kv_bytes_per_token=10_000) for rank in plan(3 * GIB, 3 * GIB)]
    fitted = fit(parsed(), ranks, 4096)
    needed = ranks[0].memory_share.needed_bytes(8 * 2048)
    assert fitted.ranks[0].memory - 2**28 < needed <= fitted.ranks[0].memory
    assert [params.cpu for params in fitted.ranks] == [1, 1]
    # One that is longer than all of those together has to fit as well.
    fitted = fit(parsed(), ranks, 131072)
    assert fitted.ranks[0].memory >= ranks[0].memory_share.needed_bytes(131072)
    alone = parsed(common_params={"model_name": "some/model", "max_concurrent_requests": 1})
    assert fit(alone, ranks, 100).ranks[0].memory < fit(parsed(), ranks, 100).ranks[0].memory


def test_ranks_of_which_nothing_is_known():
    fitted = fit(parsed(), plan(3 * GIB, None))
    assert [params.memory for params in fitted.ranks] == [16 * GIB, 16 * GIB]


def test_a_gpus_host_holds_no_weights():
    ranks = [replace(rank, largest_bytes=GIB) for rank in plan(60 * GIB, 60 * GIB)]
    uuids = [{"rank": rank, "device_uuid": f"GPU-{rank}"} for rank in range(2)]
    fitted = fit(parsed(gpu_pinning="dra", per_rank_params=uuids), ranks)
    assert [params.memory for params in fitted.ranks] == [7 * GIB, 7 * GIB]


def test_what_the_stack_file_says_counts():
    given = [{"rank": 0, "cpu": 4, "memory": "8Gi"}, {"rank": 1, "cpu": "500m"}]
    fitted = fit(parsed(per_rank_params=given), plan(GIB, GIB))
    assert [params.cpu for params in fitted.ranks] == [4, 0.5]
    assert [params.memory for params in fitted.ranks] == [8 * GIB, 16 * GIB]


def cached(files: int | None, **changes):
    ranks = [replace(rank, file_bytes=files) for rank in plan(GIB, GIB)]
    return fit(parsed(**changes), ranks).model_cache.size


def test_an_empty_dir_has_room_for_two_models_in_coarse_steps():
    assert cached(GIB // 4) == cached(GIB) == 4 * GIB
    assert cached(GIB + 1) == 8 * GIB
    assert cached(15 * GIB) == 32 * GIB
    assert cached(None) is None


def test_a_cache_of_a_given_size_or_kind_is_left_alone():
    assert cached(GIB, model_cache={"size": "20Gi"}) == 20 * GIB
    claim = {"mode": "existing-claim", "claim_name": "weights"}
    assert cached(GIB, model_cache=claim, namespaces={"create": False}) is None
    assert cached(GIB, common_params={"model_name": "/models/mine"}) is None


def test_processes_find_one_another_by_service():
    found = addresses(parsed(namespace="models", namespaces={"blocks": "chat"}))
    assert found.master_host == "small-rank-master.models.svc"
    assert found.master_url == "http://small-master-api.models.svc:8080"
    assert found.block_urls == {"block": "http://small-proxy-block.chat.svc:8082"}
    assert found.bind_address == ""


@pytest.mark.parametrize("routable", [True, False])
def test_ranks_on_two_clusters_meet_at_rank_0(routable):
    ranks = [
        {"rank": rank, "cluster_id": name, "advertise_address": f"{name}.test"}
        for rank, name in enumerate(("home", "away"))
    ]
    deployment = parsed(
        clusters={"away": {}, "home": {}},
        per_rank_params=ranks,
        multi_cluster=True,
        routable_pod_addresses=routable,
    )
    assert addresses(deployment).master_host == "home.test"
    assert rank_clusters(deployment) == ["home", "away"]
    assert stack_places(deployment) == [
        ("home", "splits"), ("away", "splits"), ("home", "blocks"), ("home", "inference-server")
    ]  # fmt: skip


def test_tiers_may_share_a_namespace():
    deployment = parsed(namespaces={"blocks": "splits", "inference_server": "splits"})
    assert [namespace for _, namespace in stack_places(deployment)] == ["splits"]


DEMO = {"model_name": "demo:smollm2-135m-instruct"}
LONGER = DEMO | {"max_model_len": 8192}


def running(*ranks: dict[str, Any]) -> Applied:
    """What a stack has that was brought up with these cores and memory."""
    return Applied({}, ranks)


def test_cores_and_memory_stay_as_they_are_while_the_model_fits():
    before = running({"cpu": 3.0, "memory": 2 * GIB}, {"cpu": 1.0, "memory": 3 * GIB})
    fitted, plan = plan_on_clusters(parsed(common_params=DEMO), applied=before)
    assert [params.cpu for params in fitted.ranks] == [3, 1]
    assert [params.memory for params in fitted.ranks] == [2 * GIB, 3 * GIB]
    assert not any("instead of" in note for note in plan.notes)


def test_what_the_file_says_counts_more_than_what_runs():
    before = running({"cpu": 3.0, "memory": 2 * GIB}, {"cpu": 1.0, "memory": 3 * GIB})
    given = [{"rank": 0, "cpu": 4}, {"rank": 1, "memory": "5Gi"}]
    deployment = parsed(common_params=DEMO, per_rank_params=given)
    fitted, _ = plan_on_clusters(deployment, applied=before)
    assert [params.cpu for params in fitted.ranks] == [4, 1]
    assert [params.memory for params in fitted.ranks] == [2 * GIB, 5 * GIB]


def test_a_new_rank_gets_what_a_new_stack_would_give_it():
    before = running({"cpu": 3.0, "memory": 2 * GIB})
    fitted, _ = plan_on_clusters(parsed(common_params=DEMO), applied=before)
    assert [params.cpu for params in fitted.ranks] == [3, 1]
    assert fitted.ranks[0].memory == 2 * GIB
    assert fitted.ranks[1].memory > GIB


def test_memory_grows_where_the_model_no_longer_fits_and_the_plan_says_so():
    small = 2**20 * 1250
    before = running({"cpu": 1.0, "memory": small}, {"cpu": 1.0, "memory": 20 * GIB})
    one_layer = [{"rank": 0, "layers": "0-26"}, {"rank": 1, "layers": "27-29"}]
    deployment = parsed(common_params=LONGER, per_rank_params=one_layer)
    fitted, plan = plan_on_clusters(deployment, applied=before)
    assert [params.cpu for params in fitted.ranks] == [1, 1]
    assert fitted.ranks[0].memory > 2 * GIB
    assert fitted.ranks[1].memory == 20 * GIB  # enough already
    (note,) = [note for note in plan.notes if "instead of" in note]
    assert note.startswith("rank 0 gets 2.4 GB")
    assert "of memory instead of 1.3 GB, in which the model does not fit" in note


@pytest.mark.parametrize(("memory", "grows"), [(4.0, True), (4.25, False)])
def test_the_host_of_a_gpu_grows_once_tensors_have_no_way_through(memory: float, grows: bool):
    """The demo model's largest tensor, its vocabulary, takes 57 MB in bfloat16."""
    uuids = [{"rank": rank, "device_uuid": f"GPU-{rank}"} for rank in range(2)]
    deployment = parsed(
        common_params=DEMO | {"dtype": "bfloat16"}, gpu_pinning="dra", per_rank_params=uuids
    )
    before = running({"cpu": 1.0, "memory": int(memory * GIB)}, {"cpu": 1.0, "memory": 20 * GIB})
    fitted, plan = plan_on_clusters(deployment, applied=before)
    memories = [(params.memory or 0) / GIB for params in fitted.ranks]
    assert memories[1] == 20
    assert memories[0] == (pytest.approx(6.05, abs=0.01) if grows else memory)
    told = [note for note in plan.notes if "instead of" in note]
    assert [note.partition(" of memory")[0] for note in told] == ["rank 0 gets 6.5 GB"] * grows


def test_memory_that_the_file_gives_never_grows():
    before = running({"cpu": 1.0, "memory": GIB}, {"cpu": 1.0, "memory": GIB})
    given = [{"rank": rank, "memory": "1Gi"} for rank in range(2)]
    with pytest.raises(StackConfigError, match="memory"):
        plan_on_clusters(parsed(common_params=LONGER, per_rank_params=given), applied=before)


@pytest.mark.parametrize(("before", "after"), [(None, None), (64 * GIB, 64 * GIB), (GIB, 4 * GIB)])
def test_the_room_of_a_model_cache_stays_while_it_is_enough(before, after):
    mode = {"mode": "empty-dir", "size": before}
    was = Applied({"model_cache": mode}, ({"cpu": 2.0, "memory": 8 * GIB},) * 2)
    fitted, _ = plan_on_clusters(parsed(common_params=DEMO), applied=was)
    assert fitted.model_cache.size == after
