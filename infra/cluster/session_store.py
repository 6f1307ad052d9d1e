"""The session store of a stack: its password, and a Valkey where the stack brings its own."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core import v1 as core

from infra.cluster import labels
from infra.cluster.mounts import (
    SECRET_FOLDER,
    SPEC_FOLDER,
    Mount,
    claim_mount,
    config_map_mount,
    empty_mount,
    secret_mount,
)
from infra.cluster.objects import Clusters
from infra.cluster.placement import tier_placement
from infra.cluster.pods import Container, Probes
from infra.cluster.tier import Tier, TierPods
from infra.stack.config import DeploymentConfig
from infra.stack.session_url import SESSION_STORE_PORT

PASSWORD_FILE = "session_store_password"  # noqa: S105 (a file's name)
_AUTHENTICATION_FILE = "valkey-authentication.conf"
_CONFIGURATION_FILE = "valkey.conf"
DATA_FOLDER = "/data"
# Valkey writes what it holds and leaves; histories are small.
_DRAIN_S = 15.0


@dataclass(frozen=True)
class SessionStoreArgs:
    """`password` None: the store asks for none."""

    clusters: Clusters
    password: pulumi.Output[str] | None = None


class SessionStore(Tier):
    """Nothing for SQLite, a Secret for a store elsewhere, a Valkey with mode valkey.

    `password_secret` names the Secret whose PASSWORD_FILE the proxy blocks read; "" without one.
    """

    password_secret: str

    def __init__(
        self, name: str, args: SessionStoreArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        deployment = args.clusters.deployment
        super().__init__(
            "SessionStore",
            name,
            args.clusters,
            opts,
            name=deployment.session_store_name,
            namespace=deployment.namespaces.blocks,
            component=labels.SESSION_STORE,
        )
        self._store = deployment.session_store
        self.password_secret = ""
        made: list[pulumi.Resource] = []
        if self._store.mode != "sqlite" and args.password is not None:
            self.password_secret = self.name
            secrets = {
                PASSWORD_FILE: args.password.apply(str.strip),
                _AUTHENTICATION_FILE: args.password.apply(authentication_lines),
            }
            made.append(self._secret(self.name, secrets))
        if self._store.mode == "valkey":
            self._valkey(made)
        self.register_outputs({"password_secret": self.password_secret})

    def _valkey(self, mounted: list[pulumi.Resource]) -> None:
        configuration = valkey_configuration(self._store.memory, bool(self.password_secret))
        mounted.append(self._config_map(self.name, {_CONFIGURATION_FILE: configuration}))
        if self._store.size is not None:
            mounted.append(self._claim(self.name, self._store))
        self._service(
            core.ServicePortArgs(
                name="redis", port=SESSION_STORE_PORT, target_port=SESSION_STORE_PORT
            )
        )
        pods = TierPods(
            container=self._container(),
            files=configuration,
            drain_s=_DRAIN_S,
            alone=True,  # two would write the same files
            placement=tier_placement(self._store),
            template=self._store.pod_template,
        )
        self._workload(pods, mounted)

    def _container(self) -> Container:
        mounts = [
            config_map_mount(self.name),
            histories_mount(self._deployment, self.name, DATA_FOLDER),
        ]
        if self.password_secret:
            mounts.append(secret_mount(self.password_secret))
        return Container(
            name="valkey",
            image=self._store.image,
            command=("valkey-server", f"{SPEC_FOLDER}/{_CONFIGURATION_FILE}"),
            ports={"redis": SESSION_STORE_PORT},
            probes=_valkey_probes(),
            cpu=self._store.cpu,
            memory=self._store.memory,
            mounts=mounts,
        )


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
