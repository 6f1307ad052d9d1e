"""Every object that a stack declares in its clusters, by name: out of a run of the program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pulumi.runtime import rpc

from infra.__main__ import deploy
from infra.cluster.fit import rank_clusters, stack_places
from infra.cluster.kubeconfig import Kubeconfig
from infra.cluster.recorded import Recorder, Registration
from infra.cluster.secrets import StackSecrets, secret_outputs
from infra.cluster.stack import ClusterStack
from infra.plan.applied import applied
from infra.plan.stack_plan import StackPlan
from infra.stack.config import DeploymentConfig

_STILL_TO_BE_BUILT = "still.to.be/built"
# The API's name of every kind that the program declares. Of another nobody knows the path.
PLURALS = {
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Gateway": "gateways",
    "HTTPRoute": "httproutes",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "Ingress": "ingresses",
    "Job": "jobs",
    "Namespace": "namespaces",
    "NetworkPolicy": "networkpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "PodMonitor": "podmonitors",
    "PrometheusRule": "prometheusrules",
    "ResourceClaimTemplate": "resourceclaimtemplates",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Secret": "secrets",
    "Service": "services",
    "ServiceAccount": "serviceaccounts",
    "StatefulSet": "statefulsets",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}


class ProgramError(Exception):
    """The program of a stack does not run to its end, or declares what nobody can look for."""


@dataclass(frozen=True)
class DeclaredObject:
    """`version` is the API's, as in "apps/v1"; `namespace` "" for what is in none. `manifest` is
    what the API server gets, short of what is known only once images are built."""

    cluster: str
    version: str
    kind: str
    namespace: str
    name: str
    manifest: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def group(self) -> str:
        """API group; "" is the core."""
        return self.version.rpartition("/")[0]

    @property
    def resource(self) -> str:
        """The plural in the API's paths."""
        return PLURALS[self.kind]

    @property
    def path(self) -> str:
        """Its path at the API server."""
        root = f"/apis/{self.version}" if self.group else f"/api/{self.version}"
        place = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{root}{place}/{self.resource}/{self.name}"


def declared_objects(deployment: DeploymentConfig, plan: StackPlan) -> list[DeclaredObject]:
    """Namespaces first, then what is in none. `deployment` is fitted; as if the stack had every
    secret it may have.

    Raises ProgramError.
    """

    def program() -> None:
        secrets = secret_outputs({item.name: "" for item in fields(StackSecrets)})
        kubeconfigs = {name: Kubeconfig("", "", "") for name in rank_clusters(deployment)}
        kept = applied(deployment, plan.ranks, "")
        deploy(ClusterStack(deployment, plan, secrets, kubeconfigs, kept))

    recorder = Recorder()
    try:
        recorder.run(program)
    except Exception as error:  # whatever a resource makes of its arguments
        raise ProgramError(f"{type(error).__name__}: {error}") from error
    found = [_declared(item) for item in recorder.registrations if item.is_object]
    places = stack_places(deployment)

    def order(item: DeclaredObject) -> tuple[bool, bool, int, str, str]:
        place = (item.cluster, item.namespace or item.name)
        number = places.index(place) if place in places else 0
        first = item.kind == "Namespace"
        return not first, bool(item.namespace), number, item.resource, item.name

    return sorted(found, key=order)


def _declared(item: Registration) -> DeclaredObject:
    inputs = rpc.deserialize_properties(item.request.object)
    metadata = inputs["metadata"]
    if inputs["kind"] not in PLURALS:
        raise ProgramError(f"the API's plural of {inputs['kind']} is not in PLURALS")
    return DeclaredObject(
        item.cluster,
        inputs["apiVersion"],
        inputs["kind"],
        metadata.get("namespace", ""),
        metadata["name"],
        _plain(inputs),
    )


def _plain(value: Any, key: str = "") -> Any:
    """Secrets in the clear (they are empty here), whole numbers as such."""
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, Mapping):
        found = {name: _plain(item, name) for name, item in value.items()}
        return {name: item for name, item in found.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None and key == "image":
        return _STILL_TO_BE_BUILT
    return int(value) if isinstance(value, float) and value.is_integer() else value
