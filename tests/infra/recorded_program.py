"""The Pulumi program, run under mocks: every resource as the engine would be asked for it."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml
from google.protobuf import json_format, struct_pb2
from pulumi.runtime import mocks, rpc

PROGRAM = Path(__file__).parents[2] / "infra" / "__main__.py"
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
    depends_on: frozenset[str]
    delete_before_replace: bool
    replace_on_changes: tuple[str, ...]
    replacement_trigger: str
    timeouts: tuple[str, str, str]

    @property
    def short_kind(self) -> str:
        return self.kind.rpartition(":")[2]

    @property
    def is_object(self) -> bool:
        """Whether it is a Kubernetes object."""
        return self.kind.startswith("kubernetes:")

    @property
    def cluster(self) -> str:
        """The name of its provider."""
        return self.provider.rpartition("::")[0].rpartition("::")[2]

    @property
    def metadata_name(self) -> str:
        return str(self.properties["metadata"]["name"])

    @property
    def manifest(self) -> dict[str, Any]:
        """The object as the API server gets it."""
        return whole_numbers(self.properties)


@dataclass
class Program:
    """What a run of the program asked for and put out."""

    resources: list[Recorded] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def objects(self) -> list[Recorded]:
        return [resource for resource in self.resources if resource.is_object]

    def of_kind(self, short_kind: str) -> list[Recorded]:
        return [item for item in self.objects if item.short_kind == short_kind]

    def one(self, short_kind: str, name: str) -> Recorded:
        """The object of a kind with that resource name."""
        (found,) = (item for item in self.of_kind(short_kind) if item.name == name)
        return found

    def pods(self) -> Iterator[tuple[Recorded, Mapping[str, Any]]]:
        """Every pod spec with the object that makes it."""
        for item in self.objects:
            spec = item.manifest.get("spec", {})
            if item.short_kind == "Pod":
                yield item, spec
            elif "template" in spec:
                yield item, spec["template"]["spec"]


class _Mocks(mocks.Mocks):
    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], None]:
        raise AssertionError(f"the program called {args.token}")

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        made = {"repoDigest": f"{args.inputs['imageName']}@{DIGEST}"} if is_image(args.typ) else {}
        return f"{args.name}-id", {**args.inputs, **made}


def is_image(kind: str) -> bool:
    return kind.startswith("docker:") and kind.endswith(":Image")


class _Monitor(mocks.MockMonitor):
    """Keeps the raw requests: mocks alone see neither options nor secrets."""

    def __init__(self, program: Program) -> None:
        super().__init__(_Mocks())
        self._program = program

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 (the protocol's name)
        answer = super().RegisterResource(request)
        properties = rpc.deserialize_properties(request.object, keep_unknowns=True)
        timeouts = request.customTimeouts
        if request.type != "pulumi:pulumi:Stack":
            self._program.resources.append(
                Recorded(
                    kind=request.type,
                    name=request.name,
                    urn=answer.urn,
                    properties=_plain(properties),
                    secrets=frozenset(_secret_paths(properties)),
                    parent=request.parent,
                    provider=request.provider,
                    depends_on=frozenset(request.dependencies),
                    delete_before_replace=request.deleteBeforeReplace,
                    replace_on_changes=tuple(request.replaceOnChanges),
                    replacement_trigger=_trigger(request.replacement_trigger),
                    timeouts=(timeouts.create, timeouts.update, timeouts.delete),
                )
            )
        return answer

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802 (the protocol's name)
        if "pulumi:pulumi:Stack" in request.urn:
            found = rpc.deserialize_properties(request.outputs, keep_unknowns=True)
            self._program.outputs.update(whole_numbers(_plain(found)))
        return super().RegisterResourceOutputs(request)


class _Logger:
    def __init__(self, program: Program) -> None:
        self.info = self.warning = self.error = self.debug = program.messages.append


def run_program(
    deployment: Mapping[str, Any],
    *,
    secrets: Mapping[str, str] | None = None,
    plain: Mapping[str, str] | None = None,
    preview: bool = False,
) -> Program:
    """Run the program for the value of splitstack:deployment.

    `secrets` (the group's token unless given) are encrypted in the stack file, `plain` are not.
    Raises what the program raises.
    """
    secrets = {"group_token": TOKEN} if secrets is None else secrets
    _ensure_event_loop()
    program = Program()
    # The last run's stack resource would be the parent of everything in this one.
    pulumi.runtime.settings.reset_options()
    mocks.set_mocks(
        mocks=_Mocks(),
        project="splitstack",
        stack="test",
        preview=preview,
        monitor=_Monitor(program),
        logger=_Logger(program),
    )
    values = {f"splitstack:{name}": value for name, value in {**secrets, **(plain or {})}.items()}
    if deployment:
        values["splitstack:deployment"] = json.dumps(deployment)
    secret_keys = [f"splitstack:{name}" for name in secrets]
    pulumi.runtime.set_all_config(values, secret_keys)
    _run()
    return program


def _ensure_event_loop() -> None:
    """The runtime takes the thread's loop, and an asyncio.run before leaves the thread without."""
    try:
        asyncio.get_event_loop_policy().get_event_loop()
    except RuntimeError:
        asyncio.set_event_loop(asyncio.new_event_loop())


@pulumi.runtime.test
def _run() -> None:
    runpy.run_path(str(PROGRAM), run_name="__main__")
    pulumi.runtime.get_root_resource().register_outputs(pulumi.runtime.get_root_resource().outputs)


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


def _plain(value: Any) -> Any:
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _trigger(value: struct_pb2.Value) -> str:
    return str(_plain(json_format.MessageToDict(value))) if value.WhichOneof("kind") else ""


def _secret_paths(value: Any, path: str = "") -> Iterator[str]:
    if rpc.is_rpc_secret(value):
        yield path
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secret_paths(item, f"{path}.{key}".removeprefix("."))
