"""AIOS blocks become blocks of a stack file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.aios.import_block import import_block
from infra.stack.document import read_yaml, yaml_text
from infra.stack.faults import StackConfigError
from infra.stack.file import parse_deployment, read_stack_document
from tests.infra.deployments import LOCAL, PHI

BLOCK = json.loads(Path(__file__).with_name("block_pytorch.json").read_text("utf-8"))
KEY = "splitstack:deployment"
Change = Callable[[dict[str, Any]], Any]


def changed(**changes: Any) -> dict[str, Any]:
    document = copy.deepcopy(BLOCK)
    document["body"]["spec"]["values"] |= changes
    return document


def policy(name: str, **values: Any) -> dict[str, Any]:
    return changed(policyRulesSpec=[{"values": {"name": name, **values}}])


def phi(**changes: Any) -> dict[str, Any]:
    stack = read_stack_document(PHI)
    stack["config"][KEY] |= changes
    return stack


def imported(
    document: object, stack: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The merged deployment and the warnings."""
    found = import_block(document, phi() if stack is None else stack)
    deployment = yaml.safe_load(found.text)["config"][KEY]
    parse_deployment(deployment)
    return deployment, list(found.warnings)


def faults(document: object, stack: dict[str, Any] | None = None) -> dict[str, str]:
    with pytest.raises(StackConfigError) as raised:
        import_block(document, phi() if stack is None else stack)
    return {fault.path: fault.rule for fault in raised.value.faults}


def test_everything_that_a_block_says_reaches_the_stack() -> None:
    deployment, _ = imported(BLOCK)
    assert deployment["proxy_blocks"] == [
        {
            "block_id": "chat-front",
            "component": "model.pytorch-runner:1.0.0-stable",
            "min_instances": 2,
            "max_instances": 5,
            "system_message": "Answer in one sentence.",
            "generation_config": {"max_new_tokens": 256},
            "node_id": "wc-gpu-node3",
            "probe": {"period_s": 5, "failure_threshold": 4},
            "autoscaler": {"scale_up_window_s": 20, "scale_down_window_s": 200},
        }
    ]


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("clusterAllocator.settings.max_candidates = 1", "one cluster"),
        ("resourceAllocator.parameters.allocation_data.gpus = [1]", "computes nothing"),
        ("resourceAllocator.settings.selection_mode = 'packed'", "the node is named"),
        ("loadBalancer.parameters.cache_sessions = True", "needs no key"),
        ("loadBalancer.settings.session_cache_size = 64", "without a table"),
        ("autoscaler.parameters.target_gpu_utilization = 0.5", "uses no GPU"),
        ("policyRuleURI of clusterAllocator", "no code of AIOS's"),
        ("proxy_blocks[0].block_id = 'phi-128k-2'", "replaced by this block"),
        ("maxInstances = 5", "session_store.mode valkey or url"),
    ],
)
def test_what_is_not_taken_over_is_named_with_the_reason(named: str, reason: str) -> None:
    _, warnings = imported(BLOCK)
    (line,) = [line for line in warnings if line.startswith(named)]
    assert reason in line
    assert len(warnings) == 9


def test_a_generation_parameter_that_no_block_has_is_left_out_with_a_warning() -> None:
    block = copy.deepcopy(BLOCK)
    parameters = block["body"]["spec"]["values"]["parameters"]
    parameters["generation_config"] = {"num_beams": 4, "top_k": 5}
    deployment, warnings = imported(block)
    assert deployment["proxy_blocks"][0]["generation_config"] == {"top_k": 5}
    assert any(line.startswith("parameters.generation_config.num_beams: ") for line in warnings)
    parameters["generation_config"] = [1]
    assert "proxy_blocks[0].generation_config" in faults(block)


def test_the_rest_of_the_stack_file_stays(tmp_path: Path) -> None:
    stack = phi(proxy_blocks=[{"block_id": "other"}, {"block_id": "chat-front", "cpu": 2}])
    stack |= {"encryptionsalt": "v1:x"}
    stack["config"]["splitstack:group_token"] = {"secure": "v1:secret"}
    before = copy.deepcopy(stack)
    found = import_block(BLOCK, stack)
    assert stack == before
    merged = yaml.safe_load(found.text)
    other, block = merged["config"][KEY].pop("proxy_blocks")
    assert (other, block["cpu"], block["min_instances"]) == ({"block_id": "other"}, 2, 2)
    before["config"][KEY].pop("proxy_blocks")
    assert merged == before


def test_importing_twice_is_importing_once() -> None:
    once = import_block(BLOCK, phi()).text
    assert import_block(BLOCK, read_yaml(once)).text == once


def test_comments_and_quotes_stay() -> None:
    lines = yaml_text(read_stack_document(LOCAL)).splitlines()
    assert lines == LOCAL.read_text("utf-8").splitlines()
    found = import_block({"blockId": "little"}, read_stack_document(LOCAL)).text.splitlines()
    assert [line for line in found if line in lines] == lines
    assert any(line.lstrip().startswith("#") for line in lines)


BEHIND = "\n    # What comes next.\n    nnodes: 1\n  other: 2\n"


@pytest.mark.parametrize(
    ("blocks", "merged"),
    [
        ("proxy_blocks:\n      - block_id: a # beside\n", None),
        ("proxy_blocks:\n    - block_id: a\n      probe:\n        period_s: 1 # beside\n", None),
        ("proxy_blocks:\n      - {block_id: a} # beside\n", None),
        ("proxy_blocks:\n      - block_id: a\n        system_message: |\n          text\n", None),
        ("proxy_blocks:\n      - block_id: a\n        system_message: >-\n          text\n", None),
        ("proxy_blocks: []\n", "proxy_blocks:\n      - block_id: new\n"),
        ("proxy_blocks:\n      - block_id: mine\n", "proxy_blocks:\n      - block_id: new\n"),
        ("proxy_blocks:\n      - block_id: new\n", "proxy_blocks:\n      - block_id: new\n"),
    ],
)
def test_a_comment_before_the_next_section_stays_before_it(blocks: str, merged: str | None) -> None:
    head = "config:\n  splitstack:deployment:\n    deployment_name: mine\n"
    head += "    common_params: {model_name: m}\n    "
    dash = " " * (4 if "\n    - " in blocks else 6) + "- block_id: new\n"
    found = import_block({"blockId": "new"}, read_yaml(head + blocks + BEHIND)).text
    assert found == head + (merged or blocks + dash) + BEHIND


def test_a_first_list_of_blocks_comes_before_the_comment_of_what_follows() -> None:
    head = "config:\n  splitstack:deployment:\n    deployment_name: mine\n    nnodes: 1\n"
    head += "    inference_server: {enabled: false}\n    common_params: {model_name: m}\n"
    behind = "\n  # Another program's.\n  other: 2\n"
    found = import_block({"blockId": "new"}, read_yaml(head + behind)).text
    assert found == head + "    proxy_blocks:\n      - block_id: new\n" + behind


def test_a_block_that_says_little() -> None:
    deployment, warnings = imported({"blockId": "little"}, read_stack_document(LOCAL))
    assert deployment["proxy_blocks"][-1] == {"block_id": "little"}
    assert warnings == []


def test_another_cluster_is_named_and_not_moved_to() -> None:
    query = {"variable": "id", "operator": "==", "value": "elsewhere"}
    deployment, warnings = imported(
        policy("clusterAllocator", parameters={"filter": {"clusterQuery": query}})
    )
    assert deployment["rank_0_cluster_id"] == "gcp-cluster-2"
    assert any("'elsewhere': not taken over" in line for line in warnings)
    query["operator"] = "!="
    _, warnings = imported(
        policy("clusterAllocator", parameters={"filter": {"clusterQuery": query}})
    )
    assert any("only variable id with operator ==" in line for line in warnings)


def test_what_nobody_knows_is_named() -> None:
    _, warnings = imported(policy("weather", settings={"a": 1}))
    assert any(line.startswith("weather: not taken over") for line in warnings)
    _, warnings = imported(policy("autoscaler", settings={"mood": {"good": True}}))
    assert any(line.startswith("autoscaler.settings.mood.good = True") for line in warnings)
    _, warnings = imported(changed(initSettings={"colour": "red"}, parameters={"x": 1}))
    assert {line.partition(":")[0] for line in warnings} >= {"initSettings.colour", "parameters.x"}


@pytest.mark.parametrize("document", [None, [], "text", {}, {"body": {}}, {"body": {"spec": 3}}])
def test_what_is_no_block(document: object) -> None:
    assert faults(document)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"blockId": 5}, "blockId"),
        ({"mode": "deallocate"}, "mode"),
        ({"blockInitData": {"model_split_id": "other"}}, "blockInitData.model_split_id"),
        ({"blockInitData": []}, "blockInitData"),
        ({"initSettings": "x"}, "initSettings"),
        ({"policyRulesSpec": {}}, "policyRulesSpec"),
        ({"policyRulesSpec": [3]}, "policyRulesSpec[0]"),
        ({"policyRulesSpec": [{"values": {}}]}, "policyRulesSpec[0]"),
        ({"surplus": 1}, "surplus"),
        ({"blockId": "Not A Label"}, "proxy_blocks[0].block_id"),
        ({"maxInstances": 1}, "proxy_blocks[0].max_instances"),
        ({"minInstances": "many"}, "proxy_blocks[0].min_instances"),
        ({"initSettings": {"system_message": []}}, "proxy_blocks[0].system_message"),
    ],
)
def test_every_fault_is_named(changes: dict[str, Any], path: str) -> None:
    assert path in faults(changed(**changes))


@pytest.mark.parametrize("value", ["soon", True, [], 1.5, -1])
def test_bad_numbers_of_policies_are_refused(value: object) -> None:
    document = policy("autoscaler", settings={"scale_up_cooldown": value})
    (path,) = faults(document)
    assert path.endswith(("scale_up_cooldown", "scale_up_window_s"))
