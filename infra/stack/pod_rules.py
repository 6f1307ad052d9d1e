"""Rules of what pods get beside their own: nothing of it may shadow ours. Yields Faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from contract.faults import Fault
from infra.stack.config import DeploymentConfig
from infra.stack.pod_config import ExtraVolume, PodTemplate

# Before the slash of what we set ourselves, or what steers the engine.
OWN_DOMAINS = ("app.kubernetes.io", "splitstack.dev", "pulumi.com")
_OWN_VOLUMES = (
    *("spec", "secrets", "group", "model-cache", "temporary"),
    *("management", "histories", "request-log", "ca-bundle"),
)
# What our images and pods have a use for themselves.
_OWN_FOLDERS = (
    *("/etc/splitstack", "/etc/splitstack-group", "/etc/splitstack-ca"),
    *("/run/secrets", "/var/run/secrets"),
    *("/var/cache/splitstack", "/var/lib/splitstack", "/data", "/tmp", "/app"),  # noqa: S108
    *("/bin", "/dev", "/lib", "/opt", "/proc", "/sys", "/usr"),
)
_SOURCES = ("config_map", "secret", "claim", "host_path", "empty_dir")


def pod_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Of every tier's pod_template."""
    templates = {"pod_template": deployment.pod_template}
    templates |= {
        f"{key}.pod_template": pods.pod_template for key, pods in deployment.tiers.items()
    }
    for path, template in templates.items():
        yield from _name_faults(path, template)
        yield from _volume_faults(path, template, deployment.namespaces.create)
        for index, source in enumerate(template.env_from):
            if bool(source.config_map) == bool(source.secret):
                rule = "must name a config_map or a secret, one of them"
                yield Fault(f"{path}.env_from[{index}]", source.model_dump(), rule)


def _name_faults(path: str, template: PodTemplate) -> Iterator[Fault]:
    for kind in ("annotations", "labels"):
        for name, value in getattr(template, kind).items():
            if name.rpartition("/")[0] in OWN_DOMAINS:
                rule = "is this stack's own, which must not be another"
                yield Fault(f"{path}.{kind}.{name}", value, rule)


def _volume_faults(path: str, template: PodTemplate, made_here: bool) -> Iterator[Fault]:
    names = Counter(volume.name for volume in template.volumes)
    for index, volume in enumerate(template.volumes):
        where = f"{path}.volumes[{index}]"
        given = [name for name in _SOURCES if getattr(volume, name)]
        if len(given) != 1:
            rule = f"must have one of {', '.join(_SOURCES)}; it has {', '.join(given) or 'none'}"
            yield Fault(where, volume.name, rule)
        if volume.name in _OWN_VOLUMES:
            yield Fault(f"{where}.name", volume.name, "is a volume of our own; take another name")
        if names[volume.name] > 1:
            yield Fault(f"{where}.name", volume.name, "is listed twice")
        if rule := _overlap(volume, template.volumes[:index]):
            yield Fault(f"{where}.mount_path", volume.mount_path, rule)
        if volume.host_path and made_here:
            rule = (
                "needs namespaces.create: false, and namespaces made before with Pod Security "
                "privileged: the ones that this stack makes are restricted"
            )
            yield Fault(f"{where}.host_path", volume.host_path, rule)


def _overlap(volume: ExtraVolume, before: list[ExtraVolume]) -> str:
    """Whose folder it would hide, or be hidden by; "" for nobody's."""
    path = PurePosixPath(volume.mount_path)
    for folder in _OWN_FOLDERS:
        if path.is_relative_to(folder) or PurePosixPath(folder).is_relative_to(path):
            return f"is in the way of {folder}, which the containers use; take another folder"
    for other in before:
        taken = PurePosixPath(other.mount_path)
        if path.is_relative_to(taken) or taken.is_relative_to(path):
            return f"is in the way of volume {other.name} at {other.mount_path}"
    return ""
