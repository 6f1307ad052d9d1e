"""What the rules look at: a Kubernetes object, and the pods that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INSTANCE_LABEL = "app.kubernetes.io/instance"
HOSTNAME_LABEL = "kubernetes.io/hostname"

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Resource:
    """One resource of the stack: its Pulumi type, its properties, and the provider it goes to."""

    kind: str
    name: str
    properties: Object
    provider: str = ""
    urn: str = ""

    @property
    def short_kind(self) -> str:
        """`Pod` of `kubernetes:core/v1:Pod`; "" for what is no Kubernetes object."""
        return self.kind.rpartition(":")[2] if self.kind.startswith("kubernetes:") else ""

    @property
    def label(self) -> str:
        """How messages name it."""
        metadata = section(self.properties, "metadata")
        return f"{self.short_kind} {metadata.get('name') or self.name}"


@dataclass(frozen=True)
class PodView:
    """A pod, or the template of one: `label` names the object that makes it."""

    label: str
    metadata: Object
    spec: Object
    provider: str

    @property
    def containers(self) -> Iterator[Object]:
        """The containers, init containers among them."""
        for key in ("initContainers", "containers"):
            yield from items(self.spec, key)

    def environment(self, container: Object) -> dict[str, str]:
        """The variables of a container that have a value in plain text."""
        return {
            str(item["name"]): str(item["value"])
            for item in items(container, "env")
            if item.get("value") is not None
        }

    @property
    def pinned_nodes(self) -> tuple[str, ...]:
        """The host names that required node affinity leaves; empty where it leaves all."""
        affinity = section(section(self.spec, "affinity"), "nodeAffinity")
        required = section(affinity, "requiredDuringSchedulingIgnoredDuringExecution")
        terms = items(required, "nodeSelectorTerms")
        nodes: list[str] = []
        for term in terms:
            named = [
                value
                for expression in items(term, "matchExpressions")
                if expression.get("key") == HOSTNAME_LABEL and expression.get("operator") == "In"
                for value in expression.get("values") or ()
            ]
            if not named:
                return ()
            nodes += named
        selector = section(self.spec, "nodeSelector").get(HOSTNAME_LABEL)
        return tuple(nodes) or ((selector,) if selector else ())


def section(holder: Object, key: str) -> Object:
    """The mapping under a key; empty where there is none."""
    value = holder.get(key)
    return value if isinstance(value, Mapping) else {}


def items(holder: Object, key: str) -> Sequence[Object]:
    """The list of mappings under a key; empty where there is none."""
    value = holder.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    return [item for item in value if isinstance(item, Mapping)]


def pods(resource: Resource) -> Iterator[PodView]:
    """The pod that a resource is, or the template that it makes pods from."""
    if resource.short_kind == "Pod":
        holder: Object = resource.properties
    elif resource.short_kind == "CronJob":
        job = section(section(resource.properties, "spec"), "jobTemplate")
        holder = section(section(job, "spec"), "template")
    else:
        holder = section(section(resource.properties, "spec"), "template")
    spec = section(holder, "spec")
    if resource.short_kind and spec:
        metadata = section(holder, "metadata")
        yield PodView(resource.label, metadata, spec, resource.provider)
