"""The provider as the engine calls it: what it does to objects, and how it says what went wrong.

https://github.com/pulumi/pulumi/blob/master/proto/pulumi/provider.proto
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from pulumi.runtime.proto import plugin_pb2
from pulumi.runtime.proto import provider_pb2 as wire
from pulumi.runtime.proto.provider_pb2_grpc import ResourceProviderServicer
from pulumi.runtime.proto.status_pb2 import Status

from tests.cluster.kubernetes_plugin.cluster import Cluster, ClusterError
from tests.cluster.kubernetes_plugin.jobs import (
    REPLACE_UNREADY,
    job_failure,
    pod_messages,
    wants_replacement,
)
from tests.cluster.kubernetes_plugin.object_diff import diff
from tests.cluster.kubernetes_plugin.property_values import from_wire, has_unknown, to_wire
from tests.cluster.kubernetes_plugin.readiness import NOT_ON_READ, awaited, why_not_ready

_DEFAULT_TIMEOUT_S = 600.0
_TRAILER = "grpc-status-details-bin"
_IDENTIFIER = "clusterIdentifier"
# Without its option, an object of the kind is replaced for another content.
_MUTABLE_OPTIONS = {"ConfigMap": "enableConfigMapMutable", "Secret": "enableSecretMutable"}


def _explained(method: Callable[..., Any]) -> Callable[..., Any]:
    """What the cluster refused becomes the call's error."""

    @wraps(method)
    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except ClusterError as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))

    return call


class KubernetesProvider(ResourceProviderServicer):
    """One process serves one provider resource of the program."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._cancelled = threading.Event()
        self._cluster = Cluster("", "", self._cancelled.is_set)
        self._immutable = set(_MUTABLE_OPTIONS)

    def Handshake(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name, as below)
        return wire.ProviderHandshakeResponse(accept_secrets=True, accept_resources=False)

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version=self._version)

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return wire.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Another cluster identifier is another cluster: everything on it is replaced.

        The first one replaces nothing, nor does its end.
        """
        olds, news = from_wire(request.old_inputs or request.olds), from_wire(request.news)
        changed = sorted(name for name in {**olds, **news} if olds.get(name) != news.get(name))
        moved = _IDENTIFIER in changed and _IDENTIFIER in olds and _IDENTIFIER in news
        some, none = wire.DiffResponse.DIFF_SOME, wire.DiffResponse.DIFF_NONE
        return wire.DiffResponse(
            changes=some if changed else none,
            diffs=changed,
            replaces=[_IDENTIFIER] if moved else [],
        )

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802
        settings = from_wire(request.args)
        kubeconfig, context_name = settings.get("kubeconfig", ""), settings.get("context", "")
        self._cluster = Cluster(kubeconfig, context_name, self._cancelled.is_set)
        self._immutable = {
            kind for kind, option in _MUTABLE_OPTIONS.items() if str(settings.get(option)) != "true"
        }
        return wire.ConfigureResponse(acceptSecrets=True, supportsPreview=True)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        news = from_wire(request.news)
        if news["kind"] == "Secret" and not has_unknown(news):
            _fold_string_data(news)
        return wire.CheckResponse(inputs=to_wire(news, request.news))

    def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        olds, news = from_wire(request.old_inputs), from_wire(request.news)
        found = diff(olds, news, self._immutable)
        if wants_replacement(news) and self._has_not_succeeded(olds):
            found.changes = wire.DiffResponse.DIFF_SOME
            found.replaces.append(f'metadata.annotations["{REPLACE_UNREADY}"]')
            found.deleteBeforeReplace = olds["metadata"]["name"] == news["metadata"]["name"]
        return found

    @_explained
    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        given = request.properties
        manifest = from_wire(given)
        if request.preview:
            return wire.CreateResponse(properties=given)
        self._cluster.create(manifest)
        found = self._await(given, request.timeout, context)
        return wire.CreateResponse(id=_id(manifest), properties=to_wire(found, given))

    @_explained
    def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        given = request.inputs if request.inputs.fields else request.properties
        manifest = from_wire(given)
        found = self._cluster.read(manifest)
        if found is None:
            return wire.ReadResponse()
        if awaited(manifest) and manifest["kind"] not in NOT_ON_READ:
            reason = self._why_not_ready(found)
            if reason:
                _abort(context, given, found, reason)
        return wire.ReadResponse(id=request.id, properties=to_wire(found, given), inputs=given)

    @_explained
    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.preview:
            return wire.UpdateResponse(properties=request.news)
        self._cluster.apply(from_wire(request.news))
        found = self._await(request.news, request.timeout, context)
        return wire.UpdateResponse(properties=to_wire(found, request.news))

    @_explained
    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        manifest = from_wire(request.old_inputs) or from_wire(request.properties)
        self._cluster.delete(manifest, request.timeout or _DEFAULT_TIMEOUT_S)
        return Empty()

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._cancelled.set()
        return Empty()

    def _await(
        self, given: Struct, timeout_s: float, context: grpc.ServicerContext
    ) -> dict[str, Any]:
        """The object once it is ready; one that is not in time is entered with its reason."""
        manifest = from_wire(given)
        found = self._cluster.read(manifest) or manifest
        if not awaited(manifest):
            return found
        is_job, pods, reason, failure = manifest["kind"] == "Job", [], "", ""

        def ended() -> bool:
            nonlocal found, pods, reason, failure
            found = self._cluster.read(manifest) or manifest
            reason = self._why_not_ready(found)
            if is_job and reason:
                pods, failure = self._cluster.pods_of(found), job_failure(found)
            return bool(failure) or not reason

        def versions() -> object:
            """A Job's time begins anew with each event of it or of its pods."""
            return [item["metadata"]["resourceVersion"] for item in [found, *pods] if is_job]

        in_time = self._cluster.wait(ended, timeout_s or _DEFAULT_TIMEOUT_S, versions)
        if not in_time or failure:
            _abort(context, given, found, "; ".join([*pod_messages(pods), failure or reason]))
        return found

    def _has_not_succeeded(self, manifest: Mapping[str, Any]) -> bool:
        found = self._cluster.read(manifest)
        return found is not None and bool(self._why_not_ready(found))

    def _why_not_ready(self, found: Mapping[str, Any]) -> str:
        endpoints = None
        if found["kind"] == "Service":
            endpoints = self._cluster.read({**found, "kind": "Endpoints"})
        return why_not_ready(found, endpoints)


def _abort(
    context: grpc.ServicerContext, given: Struct, found: Mapping[str, Any], why: str
) -> NoReturn:
    """The object is there and did not get ready: the engine keeps both in its state."""
    manifest = from_wire(given)
    message = f"{manifest['kind']} '{_id(manifest)}' failed to become ready: {why}"
    details = AnyMessage()
    details.Pack(
        wire.ErrorResourceInitFailed(
            id=_id(manifest), properties=to_wire(found, given), inputs=given, reasons=[message]
        )
    )
    code = grpc.StatusCode.UNKNOWN
    status = Status(code=code.value[0], message=message, details=[details])
    context.set_trailing_metadata(((_TRAILER, status.SerializeToString()),))
    context.abort(code, message)


def _id(manifest: Mapping[str, Any]) -> str:
    metadata = manifest["metadata"]
    return "/".join(filter(None, [metadata.get("namespace"), metadata["name"]]))


def _fold_string_data(manifest: dict[str, Any]) -> None:
    """As the API server does: what is read back has no stringData."""
    texts = manifest.pop("stringData", None) or {}
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
    if encoded or "data" in manifest:
        manifest["data"] = (manifest.get("data") or {}) | encoded
