"""Every object of the program against a real API server: strict schema, Pod Security `restricted`.

Nothing is created but what objects need to be admitted; the rest is a dry run on the server.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, ApiException
from kubernetes.dynamic import DynamicClient

from tests.infra.cluster.test_program import ALL_SECRETS
from tests.infra.gallery import CLUSTER_STACK_FILES, deployment_of, rendered
from tests.infra.program_stacks import NAMES, matrix
from tests.infra.recorded_program import TOKEN, Program, run_program
from tests.programs import CONTROL_PLANE, needs

pytestmark = needs(*CONTROL_PLANE)

# The control plane is shared with other tests.
_GROUPS_OF_OTHERS = ("monitoring.coreos.com", "gateway.networking.k8s.io")
RANKS, BLOCKS, SERVERS = "objects-splits", "objects-blocks", "objects-servers"
NAMED = {"blocks": BLOCKS, "inference_server": SERVERS}
_CLUSTER_WIDE: tuple[dict[str, Any], ...] = (
    {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "nvidia",
     "metadata": {"name": "nvidia"}},
    {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1,
     "metadata": {"name": "serving"}},
)  # fmt: skip


class Server:
    """The API server, asked strictly."""

    def __init__(self, client: ApiClient) -> None:
        self._client = DynamicClient(client)

    def post(self, manifest: dict[str, Any], *, dry_run: bool = True) -> None:
        """Raises ApiException when the server refuses the object."""
        kind = self._kind(manifest)
        query = "fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        path = kind.path(namespace=manifest["metadata"].get("namespace"))
        self._client.request("post", f"{path}?{query}", body=manifest)

    def delete(self, manifest: dict[str, Any]) -> None:
        self._kind(manifest).delete(name=manifest["metadata"]["name"])

    def _kind(self, manifest: dict[str, Any]) -> Any:
        return self._client.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])


def run(folder: Path, name: str) -> Program:
    mapping = copy.deepcopy(matrix(folder)[name])
    mapping["namespace"] = RANKS
    mapping["namespaces"] = mapping.get("namespaces", {}) | NAMED
    secrets = {"group_token": TOKEN} if name == "everything off" else ALL_SECRETS
    return run_program(mapping, secrets=secrets)


@pytest.fixture(scope="module")
def server(control_plane, tmp_path_factory) -> Iterator[Server]:
    program = run(tmp_path_factory.mktemp("stacks"), "everything on")
    namespaces = [item.manifest for item in program.of_kind("Namespace")]
    accounts = [item.manifest for item in program.of_kind("ServiceAccount")]
    with control_plane.client() as client:
        found = Server(client)
        for manifest in [*_CLUSTER_WIDE, *namespaces, *accounts]:
            found.post(manifest, dry_run=False)
        yield found
        for manifest in [*_CLUSTER_WIDE, *namespaces]:
            found.delete(manifest)


@pytest.mark.parametrize("name", NAMES)
def test_the_api_server_takes_every_object(server, tmp_path, name):
    take_all(server, run(tmp_path, name))


@pytest.mark.parametrize("path", CLUSTER_STACK_FILES, ids=lambda path: path.name)
def test_the_api_server_takes_what_the_stack_files_declare(server, tmp_path, path):
    given = deployment_of(path).get("namespaces", {})
    program = rendered(path, tmp_path, namespace=RANKS, namespaces=given | NAMED)
    accounts = {item.metadata_name: item.manifest for item in program.of_kind("ServiceAccount")}
    for manifest in accounts.values():
        server.post(manifest, dry_run=False)
    take_all(server, program)


def take_all(server, program):
    taken = 0
    for item in program.objects:
        # The first two are there; an operator's kinds are not Kubernetes' own.
        installed = any(group in item.kind for group in _GROUPS_OF_OTHERS)
        if item.short_kind not in ("Namespace", "ServiceAccount") and not installed:
            server.post(item.manifest)
            taken += 1
    assert taken >= 5
    # Admission looks at pods, not at what makes them.
    for item, spec in program.pods():
        if item.short_kind != "Pod":
            metadata = item.manifest["metadata"]
            metadata = {"namespace": metadata["namespace"], "name": metadata["name"]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            server.post(pod)


@pytest.mark.parametrize(
    ("spec", "container", "security"),
    [
        ({"hostNetwork": True}, {}, {}),
        ({"hostPID": True}, {}, {}),
        ({"hostIPC": True}, {}, {}),
        ({"volumes": [{"name": "models", "hostPath": {"path": "/models"}}]}, {}, {}),
        ({"securityContext": {"runAsNonRoot": True}}, {}, {}),
        ({}, {"ports": [{"containerPort": 9, "hostPort": 9}]}, {}),
        ({}, {}, {"privileged": True, "allowPrivilegeEscalation": True}),
        ({}, {}, {"allowPrivilegeEscalation": True}),
        ({}, {}, {"capabilities": {}}),
        ({}, {}, {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}),
        ({}, {}, {"runAsNonRoot": False}),
        ({}, {}, {"runAsUser": 0}),
        ({}, {}, {"seccompProfile": {"type": "Unconfined"}}),
    ],
)
def test_the_namespaces_refuse_what_is_not_restricted(server, tmp_path, spec, container, security):
    """What the policy pack need not judge."""
    pod = run(tmp_path, "bare pods").one("Pod", "small-rank-0").manifest
    volumes = pod["spec"]["volumes"] + spec.get("volumes", [])
    pod["spec"] |= {**spec, "volumes": volumes}
    pod["spec"]["containers"][1] |= container
    pod["spec"]["containers"][1]["securityContext"] |= security
    with pytest.raises(ApiException, match="violates PodSecurity"):
        server.post(pod)


def test_the_schema_is_strict(server, tmp_path):
    pod = run(tmp_path, "bare pods").one("Pod", "small-rank-0").manifest
    pod["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(ApiException, match="unknown field"):
        server.post(pod)
