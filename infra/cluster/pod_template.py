"""What the stack file gives pods beside their own."""

from __future__ import annotations

from collections.abc import Mapping

from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.mounts import (
    Mount,
    claim_mount,
    config_map_mount,
    empty_mount,
    host_mount,
    secret_mount,
)
from infra.stack.pod_config import ExtraVolume, PodTemplate


def template_metadata(
    template: PodTemplate, head: meta.ObjectMetaArgs, annotations: Mapping[str, str] | None = None
) -> meta.ObjectMetaArgs:
    """Of the pods of a workload with the metadata `head`; `annotations` are our own."""
    assert isinstance(head.labels, Mapping)
    return meta.ObjectMetaArgs(
        labels=template.labels | dict(head.labels),
        annotations=template.annotations | dict(annotations or {}) or None,
    )


def extra_mounts(template: PodTemplate) -> list[Mount]:
    """In every container of the pod."""
    return [_mount(volume) for volume in template.volumes]


def environment_sources(template: PodTemplate) -> list[core.EnvFromSourceArgs]:
    """Variables of every container of the pod; those that it names itself go first."""
    return [
        core.EnvFromSourceArgs(
            prefix=source.prefix or None,
            config_map_ref=core.ConfigMapEnvSourceArgs(name=source.config_map)
            if source.config_map
            else None,
            secret_ref=core.SecretEnvSourceArgs(name=source.secret) if source.secret else None,
        )
        for source in template.env_from
    ]


def _mount(volume: ExtraVolume) -> Mount:
    name, path = volume.name, volume.mount_path
    if volume.config_map:
        return config_map_mount(volume.config_map, path, name)
    if volume.secret:
        return secret_mount(volume.secret, path, name)
    if volume.claim:
        return claim_mount(name, volume.claim, path, read_only=volume.read_only)
    if volume.host_path:
        return host_mount(name, volume.host_path, path, read_only=volume.read_only)
    return empty_mount(name, path, volume.empty_dir)
