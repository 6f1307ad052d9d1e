"""What pods get that Splitstack has no word for: annotations, labels, volumes, variables."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from infra.stack import types
from infra.stack.placement_config import NodeLabels, Toleration


class ExtraVolume(types.Section):
    """One volume, in every container of the pod. Exactly one of the sources is given."""

    name: types.Label
    """Its name in the pod."""
    mount_path: types.AbsolutePath
    """Where containers see it."""
    config_map: types.ClassName = ""
    """Source: a ConfigMap of the pod's namespace, its keys as files."""
    secret: types.ClassName = ""
    """Source: a Secret of the pod's namespace, its keys as files."""
    claim: types.ClassName = ""
    """Source: a PersistentVolumeClaim of the pod's namespace."""
    host_path: types.AbsolutePath = ""
    """Source: a folder of the node; not in namespaces that this stack makes."""
    empty_dir: types.Bytes | None = None
    """Source: a folder that goes with the pod, of so many bytes at most."""
    read_only: bool = True
    """Whether it is only read."""


class EnvironmentSource(types.Section):
    """Environment variables out of a ConfigMap or a Secret, in every container of the pod."""

    config_map: types.ClassName = ""
    """A ConfigMap of the pod's namespace."""
    secret: types.ClassName = ""
    """A Secret of the pod's namespace."""
    prefix: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    """Before each variable's name."""


class PodTemplate(types.Section):
    """What pods have beside their own."""

    annotations: dict[types.LabelKey, types.Text] = Field(default_factory=dict)
    """Annotations, as a mesh or an injector reads them."""
    labels: dict[types.LabelKey, types.LabelValue] = Field(default_factory=dict)
    """Labels, as a queue reads them."""
    volumes: list[ExtraVolume] = Field(default_factory=list)
    """Volumes and where they are mounted."""
    env_from: list[EnvironmentSource] = Field(default_factory=list)
    """Environment variables; those that Splitstack sets itself go first."""


class Pods(types.Section):
    """What every tier around the ranks says of its pods."""

    node_selector: NodeLabels = Field(default_factory=dict)
    """Labels that the nodes of its pods have."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Tolerations of its pods."""
    pod_template: PodTemplate = PodTemplate()
    """What its pods have beside their own."""
