"""AIOS splits/create requests become stack files."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from infra.aios.import_split import import_split
from infra.stack.faults import StackConfigError
from infra.stack.file import load_stack_file, parse_deployment, require_clusters

ROOT = Path(__file__).parents[3]
REQUEST = json.loads(Path(__file__).with_name("splits_create_phi_128k_2.json").read_text("utf-8"))


def changed(**changes):
    return copy.deepcopy(REQUEST) | changes


def deployment_of(imported):
    return parse_deployment(yaml.safe_load(imported.text)["config"]["splitstack:deployment"])


def test_the_stack_file_is_the_import():
    text = (ROOT / "stacks" / "Pulumi.phi-128k-2.yaml").read_bytes().decode()
    assert import_split(REQUEST).text == text


def test_the_import_keeps_what_the_request_says():
    stack = load_stack_file(ROOT / "stacks" / "Pulumi.phi-128k-2.yaml")
    deployment = stack.deployment
    assert (stack.stack, deployment.nnodes, deployment.platform) == ("phi-128k-2", 4, "torch")
    assert deployment.common_params.model_name == "microsoft/Phi-3-mini-128k-instruct"
    assert [params.node_id for params in deployment.ranks] == ["wc-gpu-node2"] * 2 + [
        "wc-gpu-node3"
    ] * 2
    assert [params.physical_device for params in deployment.ranks] == ["0", "1", "0", "1"]
    assert deployment.gpu_pinning == "visible-devices"
    assert deployment.cluster_of(3) == "gcp-cluster-2"
    require_clusters(deployment)


def test_only_rank_3_is_corrected_and_the_warning_says_what_and_why():
    (warning,) = import_split(REQUEST).warnings
    assert warning.startswith(
        'per_rank_params[3].cuda_visible_devices = "0,1": corrected to "0": '
        'it counts from 0 within nvidia_visible_devices "1" (1 device), so ordinal 1 does not exist'
    )
    assert warning.endswith("rank 3 uses physical device 1")


def test_two_devices_become_the_first():
    request = changed()
    request["per_rank_params"][1] |= {"cuda_visible_devices": "1,0"}
    imported = import_split(request)
    assert "a stage uses exactly one device" in imported.warnings[0]
    assert deployment_of(imported).rank_params(1).physical_device == "1"


def test_a_request_without_devices_computes_on_cpu():
    request = changed(per_rank_params=[{"rank": 0}], nnodes=2)
    imported = import_split(request)
    assert deployment_of(imported).gpu_pinning == "none"
    assert imported.warnings == ()


def test_the_request_is_not_changed():
    request = changed()
    import_split(request)
    assert request == REQUEST


@pytest.mark.parametrize("document", [None, [], "text", 3, {}])
def test_what_is_no_request(document):
    with pytest.raises(StackConfigError, match="the splits/create request: "):
        import_split(document)


def fault_paths(request):
    with pytest.raises(StackConfigError) as raised:
        import_split(request)
    return {fault.path for fault in raised.value.faults}


def test_every_fault_of_a_request_is_told():
    paths = fault_paths(changed(nnodes="four", platform="tpu", headers={}))
    assert paths == {"nnodes", "platform", "headers"}
    request = changed()
    request["per_rank_params"][0] |= {"cuda_visible_devices": "3", "rank": 1}
    assert {"per_rank_params[1].rank", "per_rank_params[0].cuda_visible_devices"} <= fault_paths(
        request
    )


@pytest.mark.parametrize(
    "changes",
    [{"per_rank_params": 3}, {"per_rank_params": [3]}, {"cluster_id": {}}, {"cluster_id": [[]]},
     {"common_params": None}, {"rank_0_cluster_id": []}, {"deployment_name": {}}],
)  # fmt: skip
def test_nonsense_is_refused_not_raised(changes):
    with pytest.raises(StackConfigError):
        import_split(changed(**changes))
