"""One cluster's objects: applied by the server, read, deleted with what they own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from kubernetes import config, dynamic
from kubernetes.dynamic.exceptions import DynamicApiError, NotFoundError

_MANAGER = "splitstack-tests"
_POLL_S = 0.2


class ClusterError(Exception):
    """What the API server refused, or why it could not be asked."""


class Cluster:
    """`kubeconfig` is a path or the text itself, as the real provider takes it."""

    def __init__(self, kubeconfig: str, context: str, cancelled: Callable[[], bool]) -> None:
        self._kubeconfig, self._context = kubeconfig, context
        self._cancelled = cancelled
        self._client: dynamic.DynamicClient | None = None

    def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The object as the server has it; an object of this name must not be there."""
        if self.read(manifest) is not None:
            name = manifest["metadata"]["name"]
            raise ClusterError(f'{manifest["kind"].lower()} "{name}" already exists')
        return self.apply(manifest)

    def apply(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply: fields that are no longer given go."""
        return self._ask(
            "server_side_apply",
            manifest,
            body=dict(manifest),
            field_manager=_MANAGER,
            force_conflicts=True,
            query_params=[("fieldValidation", "Strict")],
        )

    def read(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """None when it is not there."""
        try:
            return self._ask("get", manifest)
        except _Missing:
            return None

    def pods_of(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The pods that an object of the server has made."""
        metadata = owner["metadata"]
        found = self._connected().resources.get(api_version="v1", kind="Pod")
        pods = found.get(namespace=metadata["namespace"]).to_dict()["items"]
        uid = metadata["uid"]
        return [
            pod
            for pod in pods
            if any(item["uid"] == uid for item in pod["metadata"].get("ownerReferences") or [])
        ]

    def delete(self, manifest: Mapping[str, Any], timeout_s: float) -> None:
        """Ends when the object is gone."""
        try:
            self._ask("delete", manifest, body={"propagationPolicy": "Foreground"})
        except _Missing:
            return
        gone = self.wait(lambda: self.read(manifest) is None, timeout_s)
        if not gone:
            metadata = manifest["metadata"]
            raise ClusterError(
                f"{manifest['kind']} {metadata['name']} was not gone in {timeout_s:g} s"
            )

    def wait(
        self,
        condition: Callable[[], bool],
        timeout_s: float,
        seen: Callable[[], object] = lambda: None,
    ) -> bool:
        """Whether the condition came true within the time, and before the engine gave up.

        The time begins anew when another thing is `seen`.
        """
        last, deadline = None, time.monotonic() + timeout_s
        while not condition():
            if (now := seen()) != last:
                last, deadline = now, time.monotonic() + timeout_s
            if time.monotonic() > deadline or self._cancelled():
                return False
            time.sleep(_POLL_S)
        return True

    def _ask(self, verb: str, manifest: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
        metadata = manifest["metadata"]
        try:
            resource = self._connected().resources.get(
                api_version=manifest["apiVersion"], kind=manifest["kind"]
            )
            answer = getattr(resource, verb)(
                name=metadata["name"], namespace=metadata.get("namespace"), **arguments
            )
        except NotFoundError as error:
            raise _Missing(_reason(error)) from error
        except DynamicApiError as error:
            raise ClusterError(_reason(error)) from error
        except Exception as error:  # urllib3's, kubeconfig's: the cluster cannot be asked
            raise ClusterError(f"configured Kubernetes cluster is unreachable: {error}") from error
        found: dict[str, Any] = answer.to_dict()
        found["metadata"].pop("managedFields", None)
        return found

    def _connected(self) -> dynamic.DynamicClient:
        if self._client is None:
            context = self._context or None
            if "\n" in self._kubeconfig or self._kubeconfig.lstrip().startswith("{"):
                content = yaml.safe_load(self._kubeconfig)
                api = config.new_client_from_config_dict(content, context=context)
            else:
                api = config.new_client_from_config(self._kubeconfig or None, context=context)
            self._client = dynamic.DynamicClient(api)
        return self._client


class _Missing(ClusterError):
    pass


def _reason(error: DynamicApiError) -> str:
    try:
        return str(error.summary())
    except (ValueError, KeyError):
        return str(error)
