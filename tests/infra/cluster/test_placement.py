"""Where the scheduler may put pods, as the program declares them."""

from __future__ import annotations

from typing import Any

from tests.infra.program_stacks import stack
from tests.infra.recorded_program import DIGEST, Program, run_program

ZONE = "topology.kubernetes.io/zone"
DEAR = [{"key": "dear", "operator": "Exists"}]
NODES = {"pool": "tiers"}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def specs(program: Program) -> dict[str, Any]:
    return {item.name: spec for item, spec in program.pods()}


def test_ranks_by_labels_conditions_and_zone(tmp_path):
    own = {"node_affinity": [{"key": "gpu.count", "operator": "Gt", "values": [1]}]}
    program = run_program(
        stack(
            tmp_path,
            placement={
                "node_selector": {"pool": "gpu"},
                "node_affinity": [{"key": "spot", "operator": "DoesNotExist", "weight": 7}],
                "topology": {"key": ZONE, "required": True},
            },
            per_rank_params=[{"rank": 1, "node_id": "n1", "placement": own}],
        )
    )
    first, second = program.rank_pod(0), program.rank_pod(1)
    assert first["nodeSelector"] == second["nodeSelector"] == {"pool": "gpu"}
    assert REQUIRED not in first["affinity"]["nodeAffinity"]
    assert first["affinity"]["nodeAffinity"][PREFERRED] == [
        {
            "weight": 7,
            "preference": {"matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}]},
        }
    ]
    (term,) = second["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]},
        {"key": "gpu.count", "operator": "Gt", "values": ["1"]},
    ]
    for spec in (first, second):
        (together,) = spec["affinity"]["podAffinity"][REQUIRED]
        assert together["topologyKey"] == ZONE
        labels = program.rank(0).manifest["metadata"]["labels"]
        assert together["labelSelector"]["matchLabels"].items() <= labels.items()
        assert "splitstack.dev/rank" not in together["labelSelector"]["matchLabels"]


def test_a_zone_that_is_only_preferred(tmp_path):
    program = run_program(stack(tmp_path, placement={"topology": {"key": ZONE}}))
    (weighted,) = program.rank_pod(0)["affinity"]["podAffinity"][PREFERRED]
    assert weighted["podAffinityTerm"]["topologyKey"] == ZONE


def test_nothing_asked_nothing_said(tmp_path):
    for spec in specs(run_program(stack(tmp_path))).values():
        assert not {"affinity", "nodeSelector", "tolerations"} & spec.keys()


def test_every_other_tier_has_its_own(tmp_path):
    own = {"node_selector": NODES, "tolerations": DEAR}
    program = run_program(
        stack(
            tmp_path,
            tolerations=[{"key": "gpus", "operator": "Exists"}],
            proxy_blocks=[{"block_id": "block"} | own],
            inference_server=own,
            session_store={"mode": "valkey", "image": f"registry.test/valkey@{DIGEST}"} | own,
        )
    )
    found = specs(program)
    ranks = {item.name for item in (program.rank(0), program.rank(1))}
    assert len(found) == len(ranks) + 4  # blocks, inference server, Valkey, the rollout's Job
    for name, spec in found.items():
        if name in ranks:
            assert [item["key"] for item in spec["tolerations"]] == ["gpus"]
            assert "nodeSelector" not in spec
        else:
            assert spec["nodeSelector"] == NODES, name
            assert spec["tolerations"] == DEAR, name


def test_a_runtime_class_in_every_mode(tmp_path):
    assert "runtimeClassName" not in run_program(stack(tmp_path)).rank_pod(0)
    program = run_program(stack(tmp_path, runtime_class="gvisor"))
    assert program.rank_pod(0)["runtimeClassName"] == "gvisor"
    without = [{"rank": rank, "node_id": "n1", "nvidia_visible_devices": rank} for rank in (0, 1)]
    pinned = {"gpu_pinning": "visible-devices", "per_rank_params": without}
    assert run_program(stack(tmp_path, **pinned)).rank_pod(1)["runtimeClassName"] == "nvidia"
    program = run_program(stack(tmp_path, **pinned, runtime_class=""))
    assert "runtimeClassName" not in program.rank_pod(1)


def test_devices_by_class_and_condition(tmp_path):
    condition = 'device.attributes["gpu.nvidia.com"].productName == "NVIDIA L4"'
    ranks = [
        {"rank": 0, "device_class": "mig.nvidia.com"},
        {"rank": 1, "device_uuid": "GPU-1", "device_selectors": [condition]},
    ]
    program = run_program(stack(tmp_path, gpu_pinning="dra", per_rank_params=ranks))
    asked = [
        item.manifest["spec"]["spec"]["devices"]["requests"][0]["exactly"]
        for item in program.of_kind("ResourceClaimTemplate")
    ]
    assert asked[0] == {"deviceClassName": "mig.nvidia.com"}
    assert asked[1]["deviceClassName"] == "gpu.nvidia.com"
    expressions = [item["cel"]["expression"] for item in asked[1]["selectors"]]
    assert expressions == ['device.attributes["gpu.nvidia.com"].uuid == "GPU-1"', condition]


def test_gpus_of_any_node_that_a_selector_leaves(tmp_path):
    program = run_program(
        stack(
            tmp_path,
            gpu_pinning="resource",
            placement={"node_selector": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
            per_rank_params=[{"rank": 0}, {"rank": 1}],
        )
    )
    spec = program.rank_pod(1)
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "affinity" not in spec


def test_the_masters_own_requests(tmp_path):
    program = run_program(stack(tmp_path, master={"cpu": "250m", "memory": "2Gi"}))
    master = program.rank_pod(0)["containers"][0]
    assert master["name"] == "master"
    assert master["resources"]["limits"] == {"cpu": "250m", "memory": str(2**31)}
