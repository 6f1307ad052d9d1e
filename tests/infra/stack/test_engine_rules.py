"""Rules of the keys that belong to one platform."""

import pytest

from infra.stack.config import DeploymentConfig
from infra.stack.engine_rules import VLLM_IMAGE
from infra.stack.faults import StackConfigError
from infra.stack.file import parse_deployment
from tests.infra.deployments import MINIMAL, fault_lines, parsed

NODE = {"node_id": "n", "nvidia_visible_devices": "0,1"}


def vllm(**changes: object) -> dict[str, object]:
    common = {"model_name": "some/model", **changes.pop("common_params", {})}  # type: ignore[dict-item]
    return {"platform": "vllm", "common_params": common, **changes}


def two_gpus(**rank: object) -> DeploymentConfig:
    common = {"tensor_parallel": 2}
    ranks = [{"rank": 0, **NODE, **rank}, {"rank": 1, "node_id": "m", **rank}]
    ranks[1] = {**ranks[0], **ranks[1]}
    return parsed(
        **vllm(common_params=common, per_rank_params=ranks, gpu_pinning="visible-devices")
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tensor_parallel", 2),
        ("gpu_memory_utilization", 0.5),
        ("extra_engine_args", ["--seed", "1"]),
    ],
)
def test_torch_takes_no_key_of_vllm(key, value):
    (line,) = fault_lines(common_params={"model_name": "m", key: value})
    assert line.startswith(f"common_params.{key} = ")
    assert line.endswith("is refused with platform torch: it belongs to platform vllm")


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_devices_are_counted(value):
    (line,) = fault_lines(**vllm(common_params={"tensor_parallel": value}))
    assert line.startswith(f"common_params.tensor_parallel = {value}")


@pytest.mark.parametrize("value", [0, 1.1, True])
def test_a_share_lies_between_nothing_and_all(value):
    (line,) = fault_lines(**vllm(common_params={"gpu_memory_utilization": value}))
    assert line.startswith("common_params.gpu_memory_utilization = ")


def test_on_cpus_a_rank_has_one_processor_and_its_memory():
    common = {"tensor_parallel": 2, "gpu_memory_utilization": 0.5}
    lines = fault_lines(**vllm(common_params=common))
    assert len(lines) == 2
    assert all("gpu_pinning none" in line for line in lines)


def test_arguments_are_refused_by_their_place():
    given = ["--seed", "1", "--port", "80"]
    (line,) = fault_lines(**vllm(common_params={"extra_engine_args": given}))
    assert line.startswith("common_params.extra_engine_args[2] = '--port': is refused: ")


@pytest.mark.parametrize("name", ["VLLM_PLUGINS", "PYTHONPATH", "LD_PRELOAD"])
def test_variables_of_the_engine_are_the_keepers(name):
    (line,) = fault_lines(**vllm(extra_env={name: "x"}))
    assert line.startswith(f"extra_env.{name} = 'x'")
    assert parsed(**vllm(extra_env={"NCCL_DEBUG": "INFO"})).platform == "vllm"


def test_several_clusters_are_refused_for_their_trust():
    ranks = [{"rank": 0, "cluster_id": "a"}, {"rank": 1, "cluster_id": "b"}]
    lines = fault_lines(
        **vllm(per_rank_params=ranks, multi_cluster=True, routable_pod_addresses=True)
    )
    assert [line.partition(":")[0] for line in lines] == ["platform = 'vllm'"]
    advertised = [{"rank": 0, "advertise_address": "10.0.0.1"}]
    (line,) = fault_lines(**vllm(per_rank_params=advertised))
    assert line.startswith("per_rank_params[0].advertise_address = '10.0.0.1'")


def test_a_rank_uses_exactly_as_many_devices_as_share_its_layers():
    deployment = two_gpus()
    assert deployment.devices_per_rank == 2
    assert deployment.rank_params(0).physical_devices == ("0", "1")
    assert two_gpus(cuda_visible_devices="1,0").rank_params(1).physical_devices == ("1", "0")
    for rank in ({"cuda_visible_devices": "1"}, {"nvidia_visible_devices": "0"}):
        with pytest.raises(StackConfigError, match="exactly 2 devices"):
            two_gpus(**rank)


def test_no_device_is_held_twice():
    ranks = [
        {"rank": 0, "node_id": "n", "nvidia_visible_devices": "0,1"},
        {"rank": 1, "node_id": "n", "nvidia_visible_devices": "1,2"},
    ]
    (line,) = fault_lines(
        **vllm(
            common_params={"tensor_parallel": 2},
            per_rank_params=ranks,
            gpu_pinning="visible-devices",
        )
    )
    assert "rank 1 would hold device 1 of node n, which rank 0 holds" in line


def test_a_claim_by_uuid_names_one_device():
    ranks = [{"rank": rank, "device_uuid": f"GPU-{rank}"} for rank in (0, 1)]
    lines = fault_lines(
        **vllm(common_params={"tensor_parallel": 2}, per_rank_params=ranks, gpu_pinning="dra")
    )
    assert len(lines) == 2
    assert "use device_selectors" in lines[0]


def test_a_cluster_needs_its_image_by_digest_and_its_policies():
    def lines(**changes: object) -> list[str]:
        common = {"image": "docker.io/me/it:1"}
        mapping = MINIMAL | vllm(common_params=common, clusters={"a": {}}, **changes)
        with pytest.raises(StackConfigError) as raised:
            parse_deployment(mapping, on_clusters=True)
        return [str(fault) for fault in raised.value.faults]

    found = lines(network_policies={"enabled": False})
    assert any(line.startswith("network_policies.enabled = False") for line in found)
    assert any(line.startswith(f"images.build_arguments.{VLLM_IMAGE}") for line in found)
    given = {"build_arguments": {VLLM_IMAGE: "vllm/vllm-openai:latest"}}
    assert any("by its digest" in line for line in lines(images=given))
