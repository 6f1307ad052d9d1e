from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import infra.local.fit
from infra.local import machine
from infra.local.fit import (
    MEMORY_SHARE,
    addresses,
    check_inference_port,
    faster_dtype,
    fit,
    fit_as_before,
    plan_before_up,
    port_count,
    stage_environment,
)
from infra.stack.config import DeploymentConfig
from infra.stack.faults import UserError
from infra.stack.file import parse_deployment

GB = 10**9


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(infra.local.fit, "available_bytes", lambda: 10_000_000_000)
    monkeypatch.setattr(machine, "gpu_count", lambda: 1)


def deployment(**keys: Any) -> DeploymentConfig:
    return parse_deployment(
        {
            "deployment_name": "d",
            "nnodes": 3,
            "common_params": {"model_name": "org/model"},
            "proxy_blocks": [{"block_id": "one"}],
            **keys,
        }
    )


def test_ranks_share_the_cores_and_the_memory_that_is_left() -> None:
    asking = {"rank": 1, "cpu": 4, "memory": 5_000_000_000, "nccl_socket_ifname": "eth0"}
    ranks = fit(deployment(per_rank_params=[asking])).ranks
    assert [params.cpu for params in ranks] == [2, 4, 2]
    assert [params.memory for params in ranks] == [2_000_000_000, 5_000_000_000, 2_000_000_000]
    assert {params.nccl_socket_ifname for params in ranks} == {""}


def test_every_rank_has_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert {params.cpu for params in fit(deployment()).ranks} == {1}


def test_more_memory_than_there_is_is_refused() -> None:
    asking = [{"rank": rank, "memory": 4_000_000_000} for rank in range(3)]
    with pytest.raises(UserError, match=r"ask for 12,000,000,000 .* has 10,000,000,000"):
        fit(deployment(per_rank_params=asking))


def test_ranks_that_are_there_keep_what_they_have_and_new_ones_share_the_rest() -> None:
    now = [{"cpu": 3, "memory": 2 * GB}, {"cpu": 3, "memory": 3 * GB}]
    kept = fit_as_before(deployment(), now, held=GB)
    assert [(item.cpu, item.memory) for item in kept.ranks[:2]] == [(3, 2 * GB), (3, 3 * GB)]
    third = kept.ranks[2]
    assert (third.cpu, third.memory) == (2, int(6 * GB * MEMORY_SHARE))
    fewer = fit_as_before(deployment(nnodes=1), now)
    assert [(item.cpu, item.memory) for item in fewer.ranks] == [(3, 2 * GB)]
    given = deployment(nnodes=1, per_rank_params=[{"rank": 0, "cpu": 1, "memory": 5 * GB}])
    assert [(item.cpu, item.memory) for item in fit_as_before(given, now).ranks] == [(1, 5 * GB)]


def test_a_plan_before_up_says_that_its_memory_is_this_machines() -> None:
    model = {"model_name": "demo:smollm2-135m-instruct"}
    plan = plan_before_up(deployment(common_params=model))
    assert plan.memory_checked
    assert plan.kv_estimated
    assert plan.notes == (
        "no memory is given for rank 0, 1, 2: a part of what this machine has available now; `up` "
        "looks again",
    )
    given = [{"rank": rank, "memory": 3_000_000_000} for rank in range(3)]
    plan = plan_before_up(deployment(common_params=model, per_rank_params=given))
    assert not plan.kv_estimated
    assert plan.notes == ()


def test_pinned_ranks_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [{"rank": rank, "node_id": "n"} for rank in range(3)]
    given = deployment(gpu_pinning="resource", per_rank_params=listed)
    with pytest.raises(UserError, match=r"gpu_pinning = 'resource': each of the 3 ranks.* 1"):
        fit(given)
    monkeypatch.setattr(machine, "gpu_count", lambda: 3)
    assert [stage_environment(fit(given), rank) for rank in range(3)] == [
        {"CUDA_VISIBLE_DEVICES": str(rank)} for rank in range(3)
    ]


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = deployment(inference_server={"node_port": port})
        with pytest.raises(UserError, match=f"node_port = {port}: the port is in use"):
            check_inference_port(given)
        check_inference_port(deployment(inference_server={"node_port": port, "enabled": False}))
    check_inference_port(given)


def test_everything_listens_on_ports_of_its_own_on_the_loopback() -> None:
    blocks = [{"block_id": "one"}, {"block_id": "two"}]
    given = deployment(proxy_blocks=blocks)
    count = port_count(given)
    found = addresses(given, list(range(5000, 5000 + count)))
    used = [found.master_port, found.http_port, *found.block_ports.values()]
    used += [port for stage in found.stages for port in (stage.data, stage.health)]
    assert sorted(used) == list(range(5000, 5000 + count))
    assert found.bind_address == found.master_host == "127.0.0.1"
    assert found.master_url == f"http://127.0.0.1:{found.http_port}"
    assert found.block_urls["two"] == f"http://127.0.0.1:{found.block_ports['two']}"


def test_free_ports_are_distinct_and_free() -> None:
    with machine.free_ports(20) as ports:
        assert len(set(ports)) == 20
        assert not any(machine.port_is_free(port) for port in ports)
    assert all(machine.port_is_free(port) for port in ports)


@pytest.mark.parametrize(
    ("flags", "able"),
    [("fpu avx512_bf16 amx_tile", True), ("fpu avx512_bf16x avx2", False), (None, False)],
)
def test_a_processor_that_multiplies_bfloat16_is_known_by_its_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str | None, able: bool
) -> None:
    monkeypatch.undo()
    told = tmp_path / "cpuinfo"
    told.write_text("model name\t: some\n" + (f"flags\t\t: {flags}\n" if flags else ""))
    monkeypatch.setattr(machine, "_CPU", told)
    assert machine.multiplies_bfloat16() is able


def test_what_the_processor_would_be_faster_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = {"model_name": "demo:smollm2-135m-instruct"}
    found = deployment(common_params=demo)
    assert faster_dtype(found) == ""
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: True)
    assert faster_dtype(found).startswith("this processor multiplies bfloat16, which")
    assert faster_dtype(found) in plan_before_up(found).notes
    for chosen in ("float32", "bfloat16"):
        assert faster_dtype(deployment(common_params=demo | {"dtype": chosen})) == ""
