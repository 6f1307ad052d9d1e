"""The session store of a stack: its password, and a Valkey where the stack brings its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster import labels
from infra.cluster.objects import SKIP_AWAIT, metadata, object_options
from infra.cluster.pods import (
    SECRET_FOLDER,
    SPEC_FOLDER,
    Container,
    Mount,
    Probes,
    claim_mount,
    config_map_mount,
    empty_mount,
    pod_spec,
    secret_mount,
)
from infra.cluster.tier import TierPods, tier_deployment
from infra.stack.config import DeploymentConfig
from infra.stack.session_url import SESSION_STORE_PORT

PASSWORD_FILE = "session_store_password"  # noqa: S105 (a file's name)
_AUTHENTICATION_FILE = "valkey-authentication.conf"
_CONFIGURATION_FILE = "valkey.conf"
DATA_FOLDER = "/data"
# Valkey writes what it holds and leaves; histories are small.
_DRAIN_S = 15.0
_COMPONENT = labels.SESSION_STORE


@dataclass(frozen=True)
class SessionStoreArgs:
    """`namespaces` are waited for."""

    deployment: DeploymentConfig
    provider: pulumi.ProviderResource
    password: pulumi.Output[str] | None = None
    namespaces: Sequence[pulumi.Resource] = ()


class SessionStore(pulumi.ComponentResource):
    """Nothing for SQLite, a Secret for a store elsewhere, a Valkey with mode valkey.

    `password_secret` names the Secret whose PASSWORD_FILE the proxy blocks read; "" without one.
    """

    password_secret: str

    def __init__(
        self, name: str, arguments: SessionStoreArgs, options: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("splitstack:deployment:SessionStore", name, None, options)
        self._arguments = arguments
        self._deployment = arguments.deployment
        mode = self._deployment.session_store.mode
        self.password_secret = ""
        made: list[pulumi.Resource] = []
        if mode != "sqlite" and arguments.password is not None:
            self.password_secret = self._deployment.session_store_name
            made.append(self._secret(arguments.password))
        if mode == "valkey":
            self._valkey(made)
        self.register_outputs({"password_secret": self.password_secret})

    def _secret(self, password: pulumi.Output[str]) -> core.Secret:
        return core.Secret(
            self._deployment.session_store_name,
            metadata=self._metadata(),
            string_data={
                PASSWORD_FILE: password.apply(str.strip),
                _AUTHENTICATION_FILE: password.apply(authentication_lines),
            },
            opts=self._options(),
        )

    def _valkey(self, made: list[pulumi.Resource]) -> None:
        name, store = self._deployment.session_store_name, self._deployment.session_store
        configuration = valkey_configuration(store.memory, bool(self.password_secret))
        made.append(
            core.ConfigMap(
                name,
                metadata=self._metadata(),
                data={_CONFIGURATION_FILE: configuration},
                opts=self._options(),
            )
        )
        if store.size is not None:
            made.append(histories_claim(self._deployment, name, _COMPONENT, self._options()))
        core.Service(
            name,
            metadata=self._metadata(SKIP_AWAIT),
            spec=core.ServiceSpecArgs(
                selector=labels.selector(self._deployment, _COMPONENT),
                ports=[
                    core.ServicePortArgs(
                        name="redis", port=SESSION_STORE_PORT, target_port=SESSION_STORE_PORT
                    )
                ],
            ),
            opts=self._options(),
        )
        self._workload(configuration, made)

    def _workload(self, configuration: str, before: Sequence[pulumi.Resource]) -> None:
        deployment = self._deployment
        pods = TierPods(
            component=_COMPONENT,
            spec=pod_spec(
                containers=[self._container()],
                drain_s=_DRAIN_S,
                image_pull_secrets=deployment.image_pull_secrets,
            ),
            files=configuration,
            drain_s=_DRAIN_S,
            alone=True,  # two would write the same files
        )
        name, namespace = deployment.session_store_name, deployment.namespaces.blocks
        tier_deployment(deployment, name, namespace, pods, self._options(before))

    def _container(self) -> Container:
        name, store = self._deployment.session_store_name, self._deployment.session_store
        mounts = [
            config_map_mount(name),
            histories_mount(self._deployment, name, DATA_FOLDER),
        ]
        if self.password_secret:
            mounts.append(secret_mount(self.password_secret))
        return Container(
            name="valkey",
            image=store.image,
            command=("valkey-server", f"{SPEC_FOLDER}/{_CONFIGURATION_FILE}"),
            ports={"redis": SESSION_STORE_PORT},
            probes=_valkey_probes(),
            cpu=store.cpu,
            memory=store.memory,
            mounts=mounts,
        )

    def _metadata(self, annotations: dict[str, str] | None = None) -> meta.ObjectMetaArgs:
        return metadata(
            self._deployment,
            self._deployment.session_store_name,
            self._deployment.namespaces.blocks,
            _COMPONENT,
            annotations=annotations,
        )

    def _options(self, depends_on: Sequence[pulumi.Resource] = ()) -> pulumi.ResourceOptions:
        before = [*self._arguments.namespaces, *depends_on]
        return object_options(self, self._arguments.provider, depends_on=before)


def valkey_configuration(memory: int, with_password: bool) -> str:
    """valkey.conf: every second to the disk, and when memory is short the idlest session goes.

    Half of `memory` (bytes) is for histories: rewriting the file needs room of its own.
    """
    lines = [
        f"port {SESSION_STORE_PORT}",
        f"dir {DATA_FOLDER}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        f"maxmemory {memory // 2}",
        "maxmemory-policy volatile-lru",
    ]
    if with_password:
        lines.append(f"include {SECRET_FOLDER}/{_AUTHENTICATION_FILE}")
    else:
        # Else it refuses every client of another pod; the network policy keeps others away.
        lines.append("protected-mode no")
    return "\n".join(lines) + "\n"


def authentication_lines(password: str) -> str:
    """The part of the configuration that is secret."""
    escaped = password.strip().replace("\\", "\\\\").replace('"', '\\"')
    return f'requirepass "{escaped}"\n'


def histories_claim(
    deployment: DeploymentConfig, name: str, component: str, options: pulumi.ResourceOptions
) -> core.PersistentVolumeClaim:
    """A claim of session_store.size, which goes with the stack."""
    store = deployment.session_store
    return core.PersistentVolumeClaim(
        name,
        # An unbound claim is waited for 300 s, and many bind only once their pod is there.
        metadata=metadata(
            deployment, name, deployment.namespaces.blocks, component, annotations=SKIP_AWAIT
        ),
        spec=core.PersistentVolumeClaimSpecArgs(
            access_modes=["ReadWriteOnce"],
            storage_class_name=store.storage_class or None,
            resources=core.VolumeResourceRequirementsArgs(requests={"storage": str(store.size)}),
        ),
        opts=options,
    )


def histories_mount(deployment: DeploymentConfig, claim: str, path: str) -> Mount:
    """The claim, or without session_store.size a folder that goes with its pod."""
    if deployment.session_store.size is None:
        return empty_mount("histories", path)
    return claim_mount("histories", claim, path)


def _valkey_probes() -> Probes:
    """Any answer will do, a refusal for want of a password too: it is the process that counts."""
    return Probes(
        liveness=_ping(period=5, failures=3),
        readiness=_ping(period=1, failures=3),
        startup=_ping(period=1, failures=60),
    )


def _ping(period: int, failures: int) -> core.ProbeArgs:
    return core.ProbeArgs(
        exec_=core.ExecActionArgs(command=["valkey-cli", "ping"]),
        period_seconds=period,
        timeout_seconds=2,
        success_threshold=1,
        failure_threshold=failures,
    )
