"""Volumes of pods, and where containers see them."""

from __future__ import annotations

from dataclasses import dataclass

from pulumi_kubernetes.core import v1 as core

SPEC_FOLDER = "/etc/splitstack"
SECRET_FOLDER = "/run/secrets/splitstack"  # noqa: S105 (a folder)


@dataclass(frozen=True)
class Mount:
    """A volume of the pod, or `sub_path` in it, and where a container sees it."""

    volume: core.VolumeArgs
    path: str
    read_only: bool = True
    sub_path: str = ""


def config_map_mount(
    config_map: str, path: str = SPEC_FOLDER, volume: str = "spec", *, optional: bool = False
) -> Mount:
    """A ConfigMap's keys as files; an `optional` one may be missing."""
    source = core.ConfigMapVolumeSourceArgs(name=config_map, optional=optional or None)
    return Mount(core.VolumeArgs(name=volume, config_map=source), path)


def secret_mount(secret: str, path: str = SECRET_FOLDER, volume: str = "secrets") -> Mount:
    """A Secret's keys as files that only the pod's user reads. The name is a plain string."""
    source = core.SecretVolumeSourceArgs(secret_name=secret, default_mode=0o440)
    return Mount(core.VolumeArgs(name=volume, secret=source), path)


def empty_mount(name: str, path: str, size: int | None = None) -> Mount:
    """A folder that lives as long as its pod, which is evicted with more than `size` bytes."""
    source = core.EmptyDirVolumeSourceArgs(size_limit=None if size is None else str(size))
    return Mount(core.VolumeArgs(name=name, empty_dir=source), path, read_only=False)


def memory_mount(name: str, path: str, size: int) -> Mount:
    """A folder in memory, which counts as the container's; `size` bytes at most."""
    source = core.EmptyDirVolumeSourceArgs(medium="Memory", size_limit=str(size))
    return Mount(core.VolumeArgs(name=name, empty_dir=source), path, read_only=False)


def claim_mount(
    name: str, claim: str, path: str, *, sub_path: str = "", read_only: bool = False
) -> Mount:
    """A PersistentVolumeClaim, or a folder in it."""
    source = core.PersistentVolumeClaimVolumeSourceArgs(
        claim_name=claim, read_only=read_only or None
    )
    volume = core.VolumeArgs(name=name, persistent_volume_claim=source)
    return Mount(volume, path, read_only=read_only, sub_path=sub_path)


def host_mount(name: str, folder: str, path: str, *, read_only: bool = False) -> Mount:
    """A folder that the node has: one that the kubelet made would be root's."""
    source = core.HostPathVolumeSourceArgs(path=folder, type="Directory")
    return Mount(core.VolumeArgs(name=name, host_path=source), path, read_only=read_only)
