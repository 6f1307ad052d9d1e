from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from contract.specs import (
    GroupSpec,
    InferenceServerSpec,
    MasterSpec,
    ProxySpec,
    RankPart,
    load,
    render,
)
from infra.plan.layers import RankPlan
from infra.plan.process_specs import (
    Addresses,
    StagePorts,
    group_spec,
    inference_server_spec,
    master_spec,
    proxy_spec,
    stage_spec,
)
from infra.stack.config import DeploymentConfig
from infra.stack.file import parse_deployment

PLAN = tuple(
    RankPlan(rank, layers, None, None, None, None, None)
    for rank, layers in enumerate([(0, 5), (5, 12)])
)
ADDRESSES = Addresses(
    master_host="m",
    master_port=4000,
    master_url="http://m-api:8080",
    stages=(StagePorts(), StagePorts(5001, 5002)),
    block_urls={"one": "http://one:8082"},
    block_ports={"one": 8083},
    inference_port=31505,
)


def deployment(**keys: Any) -> DeploymentConfig:
    return parse_deployment(
        {
            "deployment_name": "d",
            "nnodes": 2,
            "common_params": {
                "model_name": "org/model",
                "model_revision": "main",
                "dtype": "bfloat16",
                "max_model_len": 100,
                "max_concurrent_requests": 7,
                "prefill_token_budget": 64,
                "request_deadline_s": 33,
                "load_timeout_s": 44,
            },
            "per_rank_params": [
                {"rank": 0, "cpu": "1500m", "memory": "2Gi", "nccl_socket_ifname": "eth0"},
            ],
            "proxy_blocks": [
                {
                    "block_id": "one",
                    "component": "model.other:2",
                    "system_message": "be short",
                    "generation_config": {"top_k": 3},
                    "labels": {"a": "b"},
                    "sessions": {"max_turns": 2, "max_tokens": 3, "max_age_s": 4},
                }
            ],
            "timeouts": {"swap_drain_s": 0},
            **keys,
        }
    )


def test_every_key_of_the_stack_file_reaches_the_group() -> None:
    given = deployment()
    spec = group_spec(given, PLAN, commit="c0ffee")
    assert spec.ranks == (RankPart((0, 5)), RankPart((5, 12)))
    first, second = (stage_spec(given, params, ADDRESSES) for params in given.ranks)
    assert (first.rank, second.rank) == (0, 1)
    assert (first.threads, first.memory_bytes, first.interface) == (1, 2 * 2**30, "eth0")
    assert (second.threads, second.memory_bytes, second.interface) == (None, None, "")
    assert (first.data_port, first.health_port) == (3001, 8081)
    assert (second.data_port, second.health_port) == (5001, 5002)
    assert {first.device, second.device} == {"cpu"}
    assert (first.master_host, first.master_port) == ("m", 4000)
    master = master_spec(given, ADDRESSES)
    assert master == MasterSpec("d", master_port=4000)
    assert replace(spec, ranks=()) == GroupSpec(
        deployment_name="d",
        model_name="org/model",
        ranks=(),
        model_revision="c0ffee",
        dtype="bfloat16",
        max_model_len=100,
        max_concurrent_requests=7,
        prefill_token_budget=64,
        request_deadline_s=33.0,
        load_timeout_s=44.0,
        swap_drain_s=0.0,
    )


def test_limits_of_a_swap_are_none_by_themselves() -> None:
    spec = group_spec(deployment(common_params={"model_name": "org/model"}, timeouts={}), PLAN)
    assert (spec.load_timeout_s, spec.swap_drain_s) == (None, None)


def test_without_a_commit_the_revision_of_the_file_holds() -> None:
    common = {"model_name": "org/model", "model_revision": "v2"}
    assert group_spec(deployment(common_params=common), PLAN).model_revision == "v2"
    # The main branch by its name is the same spec as without one.
    assert group_spec(deployment(), PLAN).model_revision == ""


def test_a_pinned_rank_uses_the_one_device_it_sees() -> None:
    params = [
        {
            "rank": rank,
            "node_id": "n1",
            "nvidia_visible_devices": f"{rank}",
            "cuda_visible_devices": "0",
            "device_memory": "16Gi",
        }
        for rank in range(2)
    ]
    given = deployment(per_rank_params=params, gpu_pinning="visible-devices")
    ranks = [stage_spec(given, params, ADDRESSES) for params in given.ranks]
    assert [rank.device for rank in ranks] == ["cuda:0", "cuda:0"]
    assert [rank.visible_devices for rank in ranks] == ["0", "1"]
    assert [(rank.node, rank.memory_bytes) for rank in ranks] == [("n1", None)] * 2
    parts = group_spec(given, PLAN).ranks
    assert [part.device_memory for part in parts] == [16 * 2**30] * 2


def test_the_block_and_the_inference_server_find_one_another() -> None:
    given = deployment()
    proxy = proxy_spec(given, given.proxy_blocks[0], ADDRESSES, sessions_path="/data/s.sqlite3")
    assert (proxy.block_id, proxy.component, proxy.labels) == ("one", "model.other:2", {"a": "b"})
    assert (proxy.upstream_url, proxy.port) == ("http://m-api:8080", 8083)
    assert (proxy.system_message, proxy.generation_config) == ("be short", {"top_k": 3})
    sessions = proxy.sessions
    assert (sessions.path, sessions.max_turns) == ("/data/s.sqlite3", 2)
    assert (sessions.max_tokens, sessions.max_age_s) == (3, 4.0)
    server = inference_server_spec(given, ADDRESSES)
    (block,) = server.blocks
    assert (block.block_id, block.url) == ("one", "http://one:8082")
    assert (block.component, block.labels) == ("model.other:2", {"a": "b"})
    assert (server.port, server.request_deadline_s) == (31505, 33.0)


def test_rendered_specs_are_read_back_equal(tmp_path: Path) -> None:
    given = deployment()
    path = tmp_path / "spec.json"
    group = group_spec(given, PLAN)
    path.write_text(render(group))
    assert load(path, GroupSpec) == group
    proxy = proxy_spec(given, given.proxy_blocks[0], ADDRESSES)
    path.write_text(render(proxy))
    assert load(path, ProxySpec) == proxy
    server = inference_server_spec(given, ADDRESSES)
    path.write_text(render(server))
    assert load(path, InferenceServerSpec) == server
