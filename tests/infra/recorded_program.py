"""The Pulumi program, run without an engine: every resource as the engine would be asked for it."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml
from google.protobuf import json_format, struct_pb2
from pulumi.runtime import rpc
from pulumi.runtime.proto import alias_pb2, provider_pb2

from infra.cluster.recorded import Recorder, Registration

PROGRAM = Path(__file__).parents[2] / "infra" / "__main__.py"
API_KEYS = '[{"name": "me", "sha256": "' + "0" * 64 + '"}]'
TOKEN = "0123456789abcdef0123456789abcdef"
DIGEST = "sha256:" + "a" * 64
IMAGES = {
    "builder": "reference",
    "proxy_block": f"registry.test/proxy-block@{DIGEST}",
    "inference_server": f"registry.test/inference-server@{DIGEST}",
}
RUNNER = f"registry.test/runner@{DIGEST}"


@dataclass(frozen=True)
class Recorded:
    """One registration. `properties` have secrets in plain; `secrets` are the paths of those."""

    kind: str
    name: str
    urn: str
    properties: Mapping[str, Any]
    secrets: frozenset[str]
    parent: str
    provider: str
    cluster: str
    depends_on: frozenset[str]
    delete_before_replace: bool
    replace_on_changes: tuple[str, ...]
    replacement_trigger: str
    replace_with: tuple[str, ...]
    timeouts: tuple[str, str, str]
    aliases: tuple[str, ...]
    protect: bool
    retain_on_delete: bool
    ignore_changes: tuple[str, ...]
    additional_secret_outputs: tuple[str, ...]

    @property
    def short_kind(self) -> str:
        return self.kind.rpartition(":")[2]

    @property
    def is_object(self) -> bool:
        """Whether it is a Kubernetes object."""
        return self.kind.startswith("kubernetes:")

    @property
    def metadata_name(self) -> str:
        return str(self.properties["metadata"]["name"])

    @property
    def manifest(self) -> dict[str, Any]:
        """The object as the API server gets it."""
        return whole_numbers(self.properties)


@dataclass(frozen=True)
class Program:
    """What a run of the program asked for and put out."""

    resources: list[Recorded]
    outputs: dict[str, Any]
    messages: list[str]
    outputs_of: Mapping[str, Mapping[str, Any]]
    """By URN, of the stack and of its components."""

    @property
    def objects(self) -> list[Recorded]:
        return [resource for resource in self.resources if resource.is_object]

    def of_kind(self, short_kind: str) -> list[Recorded]:
        return [item for item in self.objects if item.short_kind == short_kind]

    def one(self, short_kind: str, name: str) -> Recorded:
        """The object of a kind with that resource name."""
        (found,) = (item for item in self.of_kind(short_kind) if item.name == name)
        return found

    def rank(self, rank: int) -> Recorded:
        """The workload of a rank, a pod or a set of one."""
        chosen = (it for it in self.objects if it.short_kind in ("Pod", "StatefulSet"))
        (found,) = (it for it in chosen if it.name.endswith(f"-rank-{rank}"))
        return found

    def rank_pod(self, rank: int) -> Mapping[str, Any]:
        """The spec of a rank's pod."""
        (spec,) = (spec for item, spec in self.pods() if item is self.rank(rank))
        return spec

    def pods(self) -> Iterator[tuple[Recorded, Mapping[str, Any]]]:
        """Every pod spec with the object that makes it."""
        for item in self.objects:
            spec = item.manifest.get("spec", {})
            if item.short_kind == "Pod":
                yield item, spec
            elif "template" in spec:
                yield item, spec["template"]["spec"]


@dataclass
class _Registry(Recorder):
    """An image that was built has a digest; `state` is what the engine kept, by URN."""

    state: Mapping[str, Any] = field(default_factory=dict)

    def Invoke(self, request: Any) -> Any:  # noqa: N802
        assert request.tok == "pulumi:pulumi:readStackResourceOutputs"
        found = struct_pb2.Struct()
        found.update({"outputs": dict(self.state)})
        return provider_pb2.InvokeResponse(**{"return": found})

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802
        answer = super().RegisterResource(request)
        if request.type.startswith("docker:") and request.type.endswith(":Image"):
            answer.object["repoDigest"] = f"{request.object['imageName']}@{DIGEST}"
        return answer


def run_program(
    deployment: Mapping[str, Any],
    *,
    secrets: Mapping[str, str] | None = None,
    plain: Mapping[str, str] | None = None,
    preview: bool = False,
    state: Mapping[str, Any] | None = None,
) -> Program:
    """Run the program for the value of splitstack:deployment.

    `secrets` (unless given, those that a stack must have) are encrypted in the stack file, `plain`
    are not. `state` is what the engine kept of the stack's resources. Raises what the program
    raises.
    """
    secrets = {"group_token": TOKEN, "api_keys": API_KEYS} if secrets is None else secrets
    values = {f"splitstack:{name}": value for name, value in {**secrets, **(plain or {})}.items()}
    if deployment:
        values["splitstack:deployment"] = json.dumps(deployment)

    def program() -> None:
        pulumi.runtime.set_all_config(values, [f"splitstack:{name}" for name in secrets])
        runpy.run_path(str(PROGRAM), run_name="__main__")

    return record(program, preview=preview, state=state)


def record(
    program: Callable[[], None], *, preview: bool = False, state: Mapping[str, Any] | None = None
) -> Program:
    """Run any program that declares resources, as `run_program` does ours."""
    recorder = _Registry("test", preview, state=state or {})
    recorder.run(program)
    outputs: dict[str, Any] = {}
    outputs_of: dict[str, dict[str, Any]] = {}
    for request in recorder.outputs:
        told = rpc.deserialize_properties(request.outputs, keep_unknowns=True)
        outputs_of[request.urn] = whole_numbers(_plain(told))
        if "pulumi:pulumi:Stack" in request.urn:
            outputs.update(outputs_of[request.urn])
    resources = [_recorded(item) for item in recorder.registrations if item.request.parent]
    return Program(resources, outputs, recorder.messages, outputs_of)


def _recorded(item: Registration) -> Recorded:
    request, properties = (
        item.request,
        rpc.deserialize_properties(item.request.object, keep_unknowns=True),
    )
    timeouts = request.customTimeouts
    return Recorded(
        kind=item.kind,
        name=request.name,
        urn=item.urn,
        properties=_plain(properties),
        secrets=frozenset(_secret_paths(properties)),
        parent=request.parent,
        provider=request.provider,
        cluster=item.cluster,
        depends_on=frozenset(request.dependencies),
        delete_before_replace=request.deleteBeforeReplace,
        replace_on_changes=tuple(request.replaceOnChanges),
        replacement_trigger=_trigger(request.replacement_trigger),
        replace_with=tuple(request.replace_with),
        timeouts=(timeouts.create, timeouts.update, timeouts.delete),
        aliases=tuple(map(_alias, request.aliases)) + tuple(request.aliasURNs),
        protect=request.protect,
        retain_on_delete=request.retainOnDelete,
        ignore_changes=tuple(request.ignoreChanges),
        additional_secret_outputs=tuple(request.additionalSecretOutputs),
    )


def state_after(program: Program) -> dict[str, Any]:
    """By URN, as the engine keeps what the program declared."""
    resources: dict[str, Any] = {
        item.urn: {"type": item.kind, "outputs": _kept(item)} for item in program.resources
    }
    resources["urn:pulumi:test::splitstack::pulumi:pulumi:Stack::splitstack-test"] = {
        "type": "pulumi:pulumi:Stack",
        "outputs": dict(program.outputs),
    }
    return resources


def edit_told(program: Program) -> str:
    """What the program said of an edit; "" where it saw none."""
    return "".join(message for message in program.messages if "this edit:" in message)


def changed_objects(before: Program, after: Program) -> set[tuple[str, str]]:
    """(kind, name) of the objects that an edit of the stack file changes, makes or takes away."""
    old, new = ({item.urn: item for item in found.objects} for found in (before, after))
    return {
        (item.short_kind, item.name)
        for urn, item in (old | new).items()
        if urn not in old or urn not in new or old[urn].properties != new[urn].properties
    }


def write_kubeconfig(folder: Path, name: str, host: str = "cluster.test") -> Path:
    """A kubeconfig file whose one context is `name`."""
    path = folder / f"{name}.kubeconfig"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {"server": f"https://{host}:6443"}}],
        "users": [{"name": name, "user": {"token": f"token-of-{name}"}}],
    }
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


def whole_numbers(value: Any) -> Any:
    """Numbers arrive as floats."""
    if isinstance(value, Mapping):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _kept(item: Recorded) -> dict[str, Any]:
    """What the program reads of it again."""
    if item.kind == "pulumi:index:Stash":
        return {"output": item.properties["input"]}
    return {"metadata": item.properties["metadata"]} if item.is_object else {}


def _plain(value: Any) -> Any:
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _alias(alias: alias_pb2.Alias) -> str:
    """A URN, or what of one is said to have been otherwise."""
    said = json_format.MessageToDict(alias.spec)
    return alias.urn or ", ".join(f"{key}={said[key]}" for key in sorted(said) if said[key])


def _trigger(value: struct_pb2.Value) -> str:
    return str(_plain(json_format.MessageToDict(value))) if value.WhichOneof("kind") else ""


def _secret_paths(value: Any, path: str = "") -> Iterator[str]:
    if rpc.is_rpc_secret(value):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secret_paths(item, f"{path}.{key}".removeprefix("."))
