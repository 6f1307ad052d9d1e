"""A stack's objects in a cluster without the engine: as the program declares them, created."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client
from kubernetes.utils import create_from_dict

from tests.cluster.control_plane import ControlPlane
from tests.infra.recorded_program import DIGEST, TOKEN, run_program
from tests.waiting import wait_for

# Nothing listens there: whoever asks is refused at once.
REGISTRY = "127.0.0.1:9"
# What an admission policy answers.
_UNPROCESSABLE = 422
DEMO = "demo:smollm2-135m-instruct"


def stack_mapping(control_plane: ControlPlane, name: str, **changes: object) -> dict[str, Any]:
    """Two CPU ranks with every tier, in namespaces of their own."""
    mapping: dict[str, Any] = {
        "deployment_name": name,
        "workload": "pod",
        "nnodes": 2,
        "common_params": {"model_name": DEMO, "image": f"{REGISTRY}/runner@{DIGEST}"},
        "images": {
            "builder": "reference",
            "proxy_block": f"{REGISTRY}/proxy-block@{DIGEST}",
            "inference_server": f"{REGISTRY}/inference-server@{DIGEST}",
        },
        "namespace": f"{name}-splits",
        "namespaces": {"blocks": f"{name}-blocks", "inference_server": f"{name}-public"},
        "inference_server": {"node_port": 30000 + sum(name.encode()), "anonymous": True},
        "clusters": {"home": {"kubeconfig": str(control_plane.kubeconfig)}},
        "proxy_blocks": [{"block_id": "block"}],
    }
    return mapping | changes


def write_stack(folder: Path, mapping: Mapping[str, Any]) -> Path:
    """The stack file of a deployment."""
    path = folder / f"Pulumi.{mapping['deployment_name']}.yaml"
    path.write_text(yaml.safe_dump({"config": {"splitstack:deployment": dict(mapping)}}))
    return path


@contextmanager
def applied(control_plane: ControlPlane, mapping: Mapping[str, Any]) -> Iterator[None]:
    """Its namespaces go with everything in them when it is left, then what guards them."""
    program = run_program(mapping, secrets={"group_token": TOKEN})
    with control_plane.client() as api:
        core = client.CoreV1Api(api)
        guards = client.AdmissionregistrationV1Api(api)
        namespaces = [item.metadata_name for item in program.of_kind("Namespace")]
        try:
            for item in sorted(program.objects, key=lambda item: item.short_kind != "Namespace"):
                create_from_dict(api, dict(item.manifest))
            yield
        finally:
            for item in program.of_kind("ServiceAccount"):
                # In namespaces of others, who could not go before.
                if item.manifest["metadata"]["namespace"] not in namespaces:
                    namespace = item.manifest["metadata"]["namespace"]
                    core.delete_namespaced_service_account(item.metadata_name, namespace)
            for name in namespaces:
                wait_for(lambda name=name: not _kept(core, name), what=f"{name} may go")
                core.delete_namespace(name)
                # The namespace would give each pod its whole drain time.
                core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
            wait_for(
                lambda: (
                    not {*namespaces} & {item.metadata.name for item in core.list_namespace().items}
                ),
                60,
                "namespaces gone",
            )
            for item in program.of_kind("ValidatingAdmissionPolicyBinding"):
                guards.delete_validating_admission_policy_binding(item.metadata_name)
            for item in program.of_kind("ValidatingAdmissionPolicy"):
                guards.delete_validating_admission_policy(item.metadata_name)


def _kept(core: client.CoreV1Api, namespace: str) -> bool:
    """Whether a guard refuses its deletion: it hears of an account's end a moment later."""
    try:
        core.delete_namespace(namespace, dry_run="All")
    except client.ApiException as error:
        if error.status != _UNPROCESSABLE:
            raise
        return True
    return False
