"""What the API server itself says of every object that is not there yet: created, but not kept.

Quotas, Pod Security, webhooks and admission policies are asked so. Each object is asked alone:
whether all of them together are within a quota, nobody says before they are made.
https://kubernetes.io/docs/reference/using-api/api-concepts/#dry-run
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient, Finding
from infra.inspection.declared import DeclaredObject

# Doctor says more of these elsewhere: missing kinds and namespaces, objects of others, ...
_TOLD_ELSEWHERE = (401, 404, 409)
# ... rights, which the API server words so unlike what admission forbids, and node ports.
_TOLD_IN_WORDS = ("cannot create resource", "provided port is already allocated")
# Of a webhook that does more than to answer: what it says of the real object nobody knows.
_UNTRIED = "does not support dry run"
_WORKLOADS = ("Deployment", "Job", "StatefulSet")


def check_admission(cluster: ClusterClient, objects: Iterable[DeclaredObject]) -> Iterator[Finding]:
    """One sentence for each object that would be refused, and for each workload whose pod would."""
    for item in objects:
        with cluster.asked_to(f"get {item.resource} {item.name}"):
            if cluster.metadata(item.path) is not None:
                continue
        for asked, path, manifest in _asked(item):
            said = _refusal(cluster, path, manifest)
            if said:
                where = f" in namespace {item.namespace}" if item.namespace else ""
                text = f"the API server would refuse {asked}{where}: {said}"
                untried = _UNTRIED in said
                yield cluster.finding("warning" if untried else "fault", text)


def _asked(item: DeclaredObject) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(what, the collection's path, manifest): the object, and a pod as its controller makes it."""
    collection, manifest = item.path.rpartition("/")[0], dict(item.manifest)
    if item.kind == "Pod":
        manifest["spec"] = _without_account(manifest["spec"])
    yield f"{item.resource}/{item.name}", collection, manifest
    template = manifest.get("spec", {}).get("template")
    if item.kind in _WORKLOADS and template:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "generateName": f"{item.name}-"},
            "spec": _without_account(template["spec"]),
        }
        path = f"/api/v1/namespaces/{item.namespace}/pods"
        yield f"the pod of {item.resource}/{item.name}", path, pod


def _without_account(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Its account is made by the same `up`, and admission refuses pods before that is there."""
    return {key: value for key, value in spec.items() if key != "serviceAccountName"}


def _refusal(cluster: ClusterClient, path: str, manifest: Mapping[str, Any]) -> str:
    """The API server's words; "" where it would take it, or something else is in the way."""
    with cluster.asked_to(f"try {path}"):
        request = cluster.api.param_serialize(
            "POST",
            path,
            query_params=[("dryRun", "All")],
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=dict(manifest),
            auth_settings=["BearerToken"],
        )
        response = cluster.api.call_api(*request, _request_timeout=REQUEST_TIMEOUT)
        body = response.read()  # type: ignore[no-untyped-call]
    if response.status < 400 or response.status in _TOLD_ELSEWHERE:
        return ""
    try:
        said = str(json.loads(body)["message"])
    except (ValueError, KeyError):
        said = f"it answers {response.status}"
    return "" if any(words in said for words in _TOLD_IN_WORDS) else said
