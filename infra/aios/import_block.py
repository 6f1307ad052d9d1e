"""An AIOS block.json -> a stack file with that block, and what became of each policy."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from contract.faults import MISSING, Fault
from infra.aios.block_policies import map_policies
from infra.stack.comments import comment_below_kept, commented
from infra.stack.config import DEPLOYMENT_KEY
from infra.stack.document import yaml_text
from infra.stack.faults import StackConfigError
from infra.stack.file import parse_deployment
from infra.stack.generation_config import GenerationConfig

_SOURCE = "the block"
_SPEC_PATH = "body.spec.values"
# Keys of a block's spec that say something, and where the stack file has it.
_KEYS = {
    "blockId": "block_id",
    "blockComponentURI": "component",
    "minInstances": "min_instances",
    "maxInstances": "max_instances",
}
_OTHERS = ("mode", "blockInitData", "initSettings", "parameters", "policyRulesSpec")


@dataclass(frozen=True)
class ImportedBlock:
    """The stack file's text and, a line each, what of the block was not taken over and why."""

    text: str
    warnings: tuple[str, ...]


def import_block(document: object, stack: dict[str, Any]) -> ImportedBlock:
    """Merge a block into the document of a stack file, which stays as it is.

    A block of the same id keeps the keys that the import says nothing of. Raises StackConfigError
    with every fault.
    """
    spec = _block_spec(document)
    merged = copy.deepcopy(stack)
    deployment = _deployment_of(merged)
    _check(spec, deployment)
    warnings: list[str] = []
    block = _basic_keys(spec, warnings)
    mapped = map_policies(spec.get("policyRulesSpec", []), _cluster_of(deployment))
    block |= mapped.block_keys
    warnings += mapped.notes
    _put(deployment, block, warnings)
    parsed = parse_deployment(deployment, source=f"{_SOURCE}, merged into the stack file")
    if block.get("max_instances", 1) > 1 and parsed.session_store.mode == "sqlite":
        warnings.append(
            f"maxInstances = {block['max_instances']}: instances share sessions in a cluster with "
            "session_store.mode valkey or url; set it before `pulumi up`"
        )
    return ImportedBlock(yaml_text(merged), tuple(warnings))


def _block_spec(document: object) -> dict[str, Any]:
    """The values under body.spec; also taken bare."""
    place: Any = document
    if isinstance(document, dict) and "body" in document:
        path = []
        for key in _SPEC_PATH.split("."):
            path.append(key)
            if not isinstance(place, dict) or key not in place:
                rule = "is required, as in an AIOS block.json"
                raise StackConfigError(_SOURCE, [Fault(".".join(path), MISSING, rule)])
            place = place[key]
    if not isinstance(place, dict):
        raise StackConfigError(_SOURCE, [Fault(_SPEC_PATH, place, "must be an object")])
    return place


def _deployment_of(stack: dict[str, Any]) -> dict[str, Any]:
    place: Any = stack
    for key in ("config", DEPLOYMENT_KEY):
        place = place.get(key) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        rule = "is required in the stack file; stacks/Pulumi.local.yaml shows one"
        raise StackConfigError("the stack file", [Fault(DEPLOYMENT_KEY, MISSING, rule)])
    return place


def _cluster_of(deployment: dict[str, Any]) -> str:
    """Where rank 0 runs, "" where the stack does not say; validation comes later."""
    named = deployment.get("cluster_id")
    clusters = deployment.get("clusters")
    candidates = [
        deployment.get("rank_0_cluster_id"),
        *(named if isinstance(named, list) else [named]),
        *(clusters if isinstance(clusters, dict) else ()),
    ]
    return next((name for name in candidates if isinstance(name, str) and name), "")


def _check(spec: dict[str, Any], deployment: dict[str, Any]) -> None:
    faults = []
    if not isinstance(spec.get("blockId"), str) or not spec["blockId"]:
        faults.append(Fault("blockId", spec.get("blockId", MISSING), "must be the block's id"))
    if spec.get("mode", "allocate") != "allocate":
        faults.append(
            Fault("mode", spec["mode"], 'must be "allocate": a stack declares its blocks')
        )
    for key in ("blockInitData", "initSettings", "parameters"):
        if not isinstance(spec.get(key, {}), dict):
            faults.append(Fault(key, spec[key], "must be an object"))
    if not isinstance(spec.get("policyRulesSpec", []), list):
        faults.append(Fault("policyRulesSpec", spec["policyRulesSpec"], "must be a list"))
    faults += [
        Fault(key, spec[key], "is not a key of a block; known are " + ", ".join([*_KEYS, *_OTHERS]))
        for key in spec.keys() - {*_KEYS, *_OTHERS}
    ]
    split = (
        spec["blockInitData"].get("model_split_id")
        if not faults and "blockInitData" in spec
        else None
    )
    if split is not None and split != deployment.get("deployment_name"):
        rule = f"must be this stack's deployment_name, {deployment.get('deployment_name')!r}"
        faults.append(Fault("blockInitData.model_split_id", split, rule))
    if faults:
        raise StackConfigError(_SOURCE, faults)


def _basic_keys(spec: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    block = {ours: spec[theirs] for theirs, ours in _KEYS.items() if theirs in spec}
    settings, parameters = spec.get("initSettings", {}), spec.get("parameters", {})
    if "system_message" in settings:
        block["system_message"] = settings["system_message"]
    ignored = [f"initSettings.{key}" for key in settings if key != "system_message"]
    ignored += [f"parameters.{key}" for key in parameters if key != "generation_config"]
    if "generation_config" in parameters:
        block["generation_config"] = config = parameters["generation_config"]
        if isinstance(config, dict):
            known = GenerationConfig.model_fields
            block["generation_config"] = {key: config[key] for key in config if key in known}
            ignored += [f"parameters.generation_config.{key}" for key in config if key not in known]
    ignored += [
        f"blockInitData.{key}" for key in spec.get("blockInitData", {}) if key != "model_split_id"
    ]
    warnings += [f"{key}: not taken over: the component has no such setting" for key in ignored]
    return block


def _put(deployment: dict[str, Any], block: dict[str, Any], warnings: list[str]) -> None:
    """Merge the block into its list, in place of the one that `import-split` made up."""
    blocks = deployment.get("proxy_blocks", [])
    if not isinstance(blocks, list):
        return  # validation says so
    for one in blocks:
        if isinstance(one, dict) and one.get("block_id") == block["block_id"]:
            with comment_below_kept(one):
                one.update(commented(block))
            return
    with comment_below_kept(deployment, "proxy_blocks"):
        made_up = {"block_id": deployment.get("deployment_name")}
        if blocks == [made_up]:
            warnings.append(
                f"proxy_blocks[0].block_id = {made_up['block_id']!r}: replaced by this block; it "
                "was the stack's only one and nothing was said of it but its name"
            )
            blocks.clear()
        if blocks:
            blocks.append(commented(block))
        else:
            deployment["proxy_blocks"] = commented([block])
