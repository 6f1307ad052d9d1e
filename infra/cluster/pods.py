"""The one builder of hardened pod specs: Pod Security `restricted`, and what it does not ask for.

Read-only root file systems, requests equal to limits (of disk an empty-dir has its own), no API
token unless used.
https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pulumi
from pulumi_kubernetes.core import v1 as core

from infra.cluster.mounts import Mount, empty_mount
from infra.cluster.placement import Placement, affinity, toleration
from infra.cluster.pod_template import environment_sources, extra_mounts
from infra.stack.pod_config import PodTemplate

# The user that every image of ours runs as; volumes belong to its group.
USER_ID = 10001
# After a drain: open streams notice, logs are written.
_GRACE_MARGIN_S = 15
_TEMPORARY = "temporary"


@dataclass(frozen=True)
class Pace:
    """A probe every `period_s`, answered within `timeout_s`; `failures` in a row count."""

    period_s: int = 1
    timeout_s: int = 1
    failures: int = 3


EACH_SECOND = Pace()


@dataclass(frozen=True)
class Probes:
    """What restarts a container (liveness, startup) and what sends it requests (readiness)."""

    liveness: core.ProbeArgs
    readiness: core.ProbeArgs
    startup: core.ProbeArgs


@dataclass(frozen=True)
class Container:
    """One container. `cpu` is in cores, `memory` in bytes, both request and limit.

    `ports` maps a name to a number; `devices` are extended resources, as in {"nvidia.com/gpu": 1};
    `claims` are names out of the pod's resource claims. `probes` None: it ends by itself. `disk` is
    requested, in bytes: what the container writes on its node, empty-dirs too, whose own limits are
    what ends it. `quiet_s` seconds go by before SIGTERM, in which Services stop sending
    connections: a process that drains refuses new requests at once.
    """

    name: str
    image: pulumi.Input[str]
    command: Sequence[str]
    ports: Mapping[str, int]
    probes: Probes | None
    cpu: float
    memory: int
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    devices: Mapping[str, int] = field(default_factory=dict)
    claims: Sequence[str] = ()
    disk: int = 0
    quiet_s: int = 0
    env_from: Sequence[core.EnvFromSourceArgs] = ()


def pod_spec(
    *,
    containers: Sequence[Container],
    drain_s: float,
    placement: Placement | None = None,
    template: PodTemplate | None = None,
    service_account: str = "",
    api_token: bool = False,
    image_pull_secrets: Sequence[str] = (),
    resource_claims: Sequence[core.PodResourceClaimArgs] = (),
    user_id: int = USER_ID,
    restart_policy: str = "Always",
) -> core.PodSpecArgs:
    """The spec of a pod whose containers run until told to end, then for `drain_s` at most.

    `api_token` mounts the service account's token. Every container has a /tmp of its pod's.
    """
    where = placement or Placement()
    if template is not None:
        extra, variables = extra_mounts(template), environment_sources(template)
        containers = [
            replace(item, mounts=[*item.mounts, *extra], env_from=variables) for item in containers
        ]
    return core.PodSpecArgs(
        containers=[_container(item) for item in containers],
        volumes=list(_volumes(containers).values()),
        restart_policy=restart_policy,
        termination_grace_period_seconds=grace_s(drain_s),
        service_account_name=service_account or None,
        automount_service_account_token=api_token,
        enable_service_links=False,
        image_pull_secrets=[core.LocalObjectReferenceArgs(name=name) for name in image_pull_secrets]
        or None,
        security_context=core.PodSecurityContextArgs(
            run_as_non_root=True,
            run_as_user=user_id,
            run_as_group=user_id,
            fs_group=user_id,
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=core.SeccompProfileArgs(type="RuntimeDefault"),
        ),
        resource_claims=list(resource_claims) or None,
        node_selector=dict(where.node_selector) or None,
        affinity=affinity(where),
        runtime_class_name=where.runtime_class or None,
        priority_class_name=where.priority_class or None,
        tolerations=[toleration(item) for item in where.tolerations] or None,
        topology_spread_constraints=list(where.topology_spread) or None,
    )


def grace_s(drain_s: float) -> int:
    """Whole seconds between SIGTERM and SIGKILL for a process that drains for `drain_s`."""
    return math.ceil(drain_s) + _GRACE_MARGIN_S


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """The command of a process of ours, the same as on one machine."""
    return ("python", "-m", module, *arguments)


def http_probes(
    port: int,
    *,
    startup_s: float,
    readiness_path: str = "/readyz",
    startup_path: str = "/livez",
    readiness: Pace = EACH_SECOND,
    liveness: Pace = EACH_SECOND,
) -> Probes:
    """A process that stops answering at the pace of `liveness` is restarted.

    Killed by liveness it gets one second: a stopped process ignores SIGTERM and would hold the
    whole drain time.
    """
    return Probes(
        liveness=_probe(port, "/livez", liveness, grace=1),
        readiness=_probe(port, readiness_path, readiness),
        startup=_probe(port, startup_path, Pace(failures=math.ceil(startup_s)), grace=1),
    )


def cpu_quantity(cores: float) -> str:
    """As the API server writes it: "2", "500m"."""
    return f"{cores:.0f}" if cores == int(cores) else f"{round(cores * 1000)}m"


def _container(container: Container) -> core.ContainerArgs:
    probes = container.probes
    amounts = {"cpu": cpu_quantity(container.cpu), "memory": str(container.memory)}
    amounts |= {name: str(count) for name, count in container.devices.items()}
    environment = {"HOME": "/tmp", **container.environment}  # noqa: S108 (the pod's own)
    return core.ContainerArgs(
        name=container.name,
        image=container.image,
        image_pull_policy="IfNotPresent",
        command=list(container.command),
        env=[core.EnvVarArgs(name=name, value=value) for name, value in environment.items()],
        env_from=list(container.env_from) or None,
        ports=[
            core.ContainerPortArgs(name=name, container_port=port, protocol="TCP")
            for name, port in container.ports.items()
        ],
        resources=core.ResourceRequirementsArgs(
            requests=amounts
            | ({"ephemeral-storage": str(container.disk)} if container.disk else {}),
            limits=amounts,
            claims=[core.ResourceClaimArgs(name=name) for name in container.claims] or None,
        ),
        volume_mounts=[
            core.VolumeMountArgs(
                name=mount.volume.name,
                mount_path=mount.path,
                sub_path=mount.sub_path or None,
                read_only=mount.read_only,
            )
            for mount in _mounts(container)
        ],
        liveness_probe=probes.liveness if probes else None,
        readiness_probe=probes.readiness if probes else None,
        startup_probe=probes.startup if probes else None,
        lifecycle=_quiet(container.quiet_s) if container.quiet_s else None,
        # What a process says last is what `splitstack status` shows of a crash.
        termination_message_policy="FallbackToLogsOnError",
        security_context=core.SecurityContextArgs(
            allow_privilege_escalation=False,
            capabilities=core.CapabilitiesArgs(drop=["ALL"]),
            privileged=False,
            read_only_root_filesystem=True,
        ),
    )


def _quiet(seconds: int) -> core.LifecycleArgs:
    sleep = core.SleepActionArgs(seconds=seconds)
    return core.LifecycleArgs(pre_stop=core.LifecycleHandlerArgs(sleep=sleep))


def _mounts(container: Container) -> list[Mount]:
    return [*container.mounts, empty_mount(_TEMPORARY, "/tmp")]  # noqa: S108 (the pod's own)


def _volumes(containers: Sequence[Container]) -> dict[str, core.VolumeArgs]:
    """By name: containers of a pod that mount the same name share the volume."""
    mounts = [mount for container in containers for mount in _mounts(container)]
    return {str(mount.volume.name): mount.volume for mount in mounts}


def _probe(port: int, path: str, pace: Pace, *, grace: int | None = None) -> core.ProbeArgs:
    return core.ProbeArgs(
        http_get=core.HTTPGetActionArgs(path=path, port=port, scheme="HTTP"),
        period_seconds=pace.period_s,
        timeout_seconds=pace.timeout_s,
        success_threshold=1,
        failure_threshold=pace.failures,
        termination_grace_period_seconds=grace,
    )
