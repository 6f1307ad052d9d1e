"""A deployment fitted to clusters: requests of ranks, and where processes meet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.cluster.fit import addresses, fit, rank_clusters, stack_places
from infra.plan.layers import RankPlan
from tests.infra.deployments import parsed

GIB = 2**30


def plan(*weights: int | None) -> list[RankPlan]:
    return [
        RankPlan(rank, (rank, rank + 1), size, None, None, None, None)
        for rank, size in enumerate(weights)
    ]


def test_ranks_that_name_no_memory_get_their_weights_and_room():
    fitted = fit(parsed(), plan(3 * GIB, None))
    assert [params.memory for params in fitted.ranks] == [9 * GIB, 16 * GIB]
    assert [params.cpu for params in fitted.ranks] == [2, 2]


def test_what_the_stack_file_says_counts():
    given = [{"rank": 0, "cpu": 4, "memory": "8Gi"}, {"rank": 1, "cpu": "500m"}]
    fitted = fit(parsed(per_rank_params=given), plan(GIB, GIB))
    assert [params.cpu for params in fitted.ranks] == [4, 0.5]
    assert [params.memory for params in fitted.ranks] == [8 * GIB, 7 * GIB]


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
