"""Stack files: reading, `--set`, and parsing, with every fault of a kind at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from contract.faults import MISSING, Fault, Location, faults_of
from contract.near_names import fields_at, hint
from infra.stack.config import DEPLOYMENT_KEY, DeploymentConfig
from infra.stack.document import read_yaml
from infra.stack.faults import StackConfigError
from infra.stack.rules import cluster_deployment_faults, deployment_faults

_SET = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_PATH_PART = re.compile(r"\.?([^.\[\]]+)|\[([0-9]+)\]")
_SECRETS = (
    *("secure", "group_token", "hub_token", "s3_credentials"),
    *("api_keys", "session_store_password"),
)


@dataclass(frozen=True)
class StackFile:
    """A stack file that has been read: its name (local of Pulumi.local.yaml) and deployment."""

    path: Path
    stack: str
    deployment: DeploymentConfig

    @property
    def lock_path(self) -> Path:
        """Where the lock of its model is, if there is one."""
        return self.path.with_name(lock_name(self.stack))


def lock_name(stack: str) -> str:
    """The file beside a stack file that says what its model is."""
    return f"{stack}.lock.json"


def load_stack_file(path: str | Path, sets: Sequence[str] = ()) -> StackFile:
    """Read a stack file and apply `--set` values to it.

    Keys other than splitstack:deployment are ignored, secrets among them. Raises StackConfigError.
    """
    path = Path(path)
    mapping = read_stack_document(path)["config"][DEPLOYMENT_KEY]
    deployment = parse_deployment(apply_sets(mapping, sets), source=str(path))
    return StackFile(path, path.stem.removeprefix("Pulumi."), deployment)


def parse_deployment(
    mapping: object, source: str = DEPLOYMENT_KEY, *, on_clusters: bool = False
) -> DeploymentConfig:
    """The value of splitstack:deployment, validated; raises StackConfigError.

    That has every fault of single keys or, where there is none, every fault between keys.
    `on_clusters` asks for what `pulumi up` needs beyond one machine.
    """
    try:
        deployment = DeploymentConfig.model_validate(mapping)
    except ValidationError as error:
        faults = faults_of(error, whole="the deployment", unknown=_unknown_key)
        raise StackConfigError(source, faults) from None
    faults = list(deployment_faults(deployment))
    if on_clusters:
        faults += cluster_deployment_faults(deployment)
    if faults:
        raise StackConfigError(source, faults)
    return deployment


def require_clusters(deployment: DeploymentConfig, source: str = DEPLOYMENT_KEY) -> None:
    """What `pulumi up` needs beyond one machine; raises StackConfigError with every fault."""
    faults = list(cluster_deployment_faults(deployment))
    if faults:
        raise StackConfigError(source, faults)


def apply_sets(mapping: Mapping[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    """A copy of the mapping with `path=value` applied, values read as YAML.

    An index counts the items of the list as they stand in the file; the one after the last
    appends. Raises StackConfigError naming each faulty item.
    """
    result = copy.deepcopy(dict(mapping))
    faults: list[Fault] = []
    for item in sets:
        fault = _apply_set(result, item)
        if fault:
            faults.append(fault)
    if faults:
        raise StackConfigError("--set", faults)
    return result


def _apply_set(mapping: dict[str, Any], item: str) -> Fault | None:
    match = _SET.fullmatch(item)
    if match is None:
        return Fault(item, MISSING, "must be path=value, as in nnodes=4")
    path = match[1].strip().removeprefix(f"{DEPLOYMENT_KEY}.")
    parts = [name or int(index) for name, index in _PATH_PART.findall(path)]
    if not parts or "".join(part[0] for part in _PATH_PART.finditer(path)) != path:
        return Fault(path, MISSING, "is no path; write it as in per_rank_params[0].cpu")
    try:
        value = read_yaml(match[2])
    except YAMLError:
        return Fault(path, match[2], "the value is not YAML")
    place: Any = mapping
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        if isinstance(part, int) != isinstance(place, list):
            return Fault(path, MISSING, f"unknown path: {_wrong_container(part, place)}")
        if isinstance(part, int) and part > len(place):
            return Fault(path, MISSING, f"unknown path: the list has {len(place)} items")
        if isinstance(part, int) and part == len(place):
            place.append(None)
        if following is None:
            place[part] = value
            break
        if (place[part] if isinstance(part, int) else place.get(part)) is None:
            place[part] = [] if isinstance(following, int) else {}
        place = place[part]
        if not isinstance(place, list | dict):
            return Fault(path, MISSING, f"unknown path: {part} is no mapping and no list")
    return None


def _wrong_container(part: str | int, place: object) -> str:
    if isinstance(place, list):
        return f"{part!r} must be an index, as in [0]"
    return f"[{part}] is an index, and there is no list"


def read_stack_document(path: str | Path) -> dict[str, Any]:
    """The whole of a stack file, other programs' keys too; raises StackConfigError.

    It has splitstack:deployment, which may have every fault of its own.
    """
    source, path = str(path), Path(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        rule = f"cannot be read: {error.strerror}"
        raise StackConfigError(source, [Fault("the file", MISSING, rule)]) from error
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text: byte {error.start} is none"
        raise StackConfigError(source, [Fault("the file", MISSING, rule)]) from error
    try:
        document = read_yaml(text)
    except MarkedYAMLError as error:
        # Of a key that is given twice it shows both values, which may be secrets.
        problem = re.split(" with value |, if necessary", str(error.problem))[0]
        rule = f"broken YAML: {problem}"
        line = error.problem_mark.line + 1
        raise StackConfigError(source, [Fault(f"line {line}", MISSING, rule)]) from None
    except YAMLError as error:
        rule = "broken YAML: is not YAML"
        raise StackConfigError(source, [Fault("the file", MISSING, rule)]) from error
    _deployment_mapping(document, source)
    return document  # type: ignore[no-any-return]


def _deployment_mapping(document: Any, source: str) -> dict[str, Any]:
    place, place_path = document, "the file"
    for key, rule in (
        ("config", "is required; everything of a stack is under it"),
        (DEPLOYMENT_KEY, "is required under config; stacks/Pulumi.local.yaml shows one"),
    ):
        if not isinstance(place, dict):
            raise StackConfigError(source, [Fault(place_path, place, "must be a mapping")])
        if key not in place:
            raise StackConfigError(source, [Fault(key, MISSING, rule)])
        place, place_path = place[key], key
    if not isinstance(place, dict):
        raise StackConfigError(source, [Fault(place_path, place, "must be a mapping")])
    return place


def _unknown_key(location: Location) -> str:
    if location[-1] in _SECRETS:
        return f"unknown key; secrets are keys of their own beside {DEPLOYMENT_KEY}"
    known = fields_at(DeploymentConfig, location[:-1])
    return "unknown key" + (hint(str(location[-1]), known) or f"; known are {', '.join(known)}")
