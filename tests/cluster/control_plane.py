"""A real Kubernetes control plane on loopback, with simulated nodes, in a temporary folder."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import kubernetes.client
import kubernetes.config
from kubernetes.client import ApiClient, ApiException

from contract.specs import MASTER_HTTP_PORT
from infra.local.process import die_with_parent
from tests.cluster.certificates import Authority, service_account_key
from tests.cluster.nodes import GPU_DRIVER, Node, device_class
from tests.cluster.pod_network import GATEWAY
from tests.programs import program
from tests.waiting import free_ports, wait_for

_OWN_STAGES = Path(__file__).parent / "stages"
_ADMINISTRATORS = ("system:masters",)
# kwok renews the lease of each node well within this.
_NODE_LEASE_S = 40
_START_LIMIT_S = 90.0


class ControlPlane:
    """etcd, API server, controller manager, scheduler and kwok.

    `name` is the name of its context in `kubeconfig`. Who forwards to the master's port of any pod
    comes out at `master_port` of this machine.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.folder = folder
        self._container_log = folder / "container.log"
        self._container_log.touch()
        port, self._etcd_port, self._etcd_peer_port, self._kwok_port, self.master_port = free_ports(
            5
        )
        self.url = f"https://127.0.0.1:{port}"
        self._port = port
        self._authority = Authority(folder)
        self._service_account_key = service_account_key(folder)
        self.kubeconfig = self.kubeconfig_for("administrator", _ADMINISTRATORS)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @contextmanager
    def start(cls, folder: Path, name: str = "cluster") -> Iterator[ControlPlane]:
        """Ready for pods when it is entered; nothing of it runs any more afterwards."""
        folder.mkdir(parents=True, exist_ok=True)
        control_plane = cls(folder, name)
        try:
            control_plane._start()
            yield control_plane
        finally:
            control_plane._stop()

    def client(self) -> ApiClient:
        """The official client, as administrator."""
        return kubernetes.config.new_client_from_config(str(self.kubeconfig))

    def kubeconfig_for(
        self, user: str, groups: tuple[str, ...] = (), valid: timedelta = timedelta(days=1)
    ) -> Path:
        """A kubeconfig of another user; with a negative `valid` one that has expired."""
        certificate = self._authority.client(user, groups, valid)
        cluster = {
            "server": self.url,
            "certificate-authority-data": _in_base64(self._authority.certificate),
        }
        credentials = {
            "client-certificate-data": _in_base64(certificate),
            "client-key-data": _in_base64(certificate.with_suffix(".key")),
        }
        # Users have the name of the cluster in theirs: files of two clusters can be merged.
        user_name = f"{user}@{self.name}"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self.name, "cluster": cluster}],
            "users": [{"name": user_name, "user": credentials}],
            "contexts": [{"name": self.name, "context": {"cluster": self.name, "user": user_name}}],
            "current-context": self.name,
        }
        file = self.folder / f"{user}.kubeconfig"
        file.write_text(json.dumps(content))
        return file

    def add_nodes(self, nodes: Iterable[Node]) -> None:
        """Create the nodes and wait until they are ready."""
        added = list(nodes)
        with self.client() as client:
            api = kubernetes.client.CoreV1Api(client)
            for node in added:
                api.create_node(node.manifest())
            waited_for = {node.name for node in added}
            wait_for(lambda: waited_for <= _ready_nodes(api), what="nodes ready")

    def add_gpu_driver(self, nodes: Iterable[Node]) -> None:
        """What a driver for dynamic resource allocation publishes: its class, the nodes' GPUs."""
        with self.client() as client:
            api = kubernetes.client.ResourceV1Api(client)
            if GPU_DRIVER not in {item.metadata.name for item in api.list_device_class().items}:
                api.create_device_class(device_class())
            for node in nodes:
                api.create_resource_slice(node.resource_slice())

    def set_container_log(self, *lines: str) -> None:
        """What each container has logged from now on, as a container runtime keeps it."""
        self._container_log.write_text("")
        self.add_container_log(*lines)

    def add_container_log(self, *lines: str) -> None:
        """What each container logs now."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        with self._container_log.open("a") as file:
            file.writelines(f"{now} stdout F {line}\n" for line in lines)

    def pids(self) -> dict[str, int]:
        """The process of each program."""
        return {name: process.pid for name, process in self._processes.items()}

    def log(self, name: str) -> str:
        """What one of the programs wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start(self) -> None:
        self._run("etcd", "--config-file", str(self._etcd_configuration()))
        self._run("kube-apiserver", *self._api_server_options())
        trusted = ssl.create_default_context(cafile=self._authority.certificate)
        self._wait(lambda: self._answers(trusted), "kube-apiserver")
        connection = [f"--kubeconfig={self.kubeconfig}"]
        single = ["--leader-elect=false", "--secure-port=0"]
        self._run("kube-controller-manager", *connection, *single, *self._manager_options())
        self._run("kube-scheduler", *connection, *single)
        self._run("kwok", *connection, *self._kwok_options())
        # Admission refuses pods before the controller manager has made their service account.
        with self.client() as client:
            api = kubernetes.client.CoreV1Api(client)
            self._wait(lambda: _has_service_account(api), "kube-controller-manager")

    def _answers(self, trusted: ssl.SSLContext) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", verify=trusted, timeout=2).is_success
        except httpx.HTTPError:
            return False

    def _stop(self) -> None:
        # Nothing is worth keeping, so nothing is asked to end in order.
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def _run(self, name: str, *options: str) -> None:
        executable = program(name)
        assert executable is not None, f"{name} missing: run `python -m tests.programs`"
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [str(executable), *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(),
            )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        while not condition():
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.log(name)[-3000:]}"
            assert time.monotonic() < deadline, f"{what} not ready:\n{self.log(what)[-3000:]}"
            time.sleep(0.05)

    def _etcd_configuration(self) -> Path:
        peer = f"http://127.0.0.1:{self._etcd_peer_port}"
        client = f"http://127.0.0.1:{self._etcd_port}"
        file = self.folder / "etcd.yaml"
        settings = {
            "name": "only",
            "data-dir": str(self.folder / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"only={peer}",
            "unsafe-no-fsync": True,
            "log-level": "warn",
        }
        file.write_text(json.dumps(settings))  # JSON is YAML
        return file

    def _api_server_options(self) -> list[str]:
        server = self._authority.server("kube-apiserver", "127.0.0.1", GATEWAY)
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--tls-cert-file={server}",
            f"--tls-private-key-file={server.with_suffix('.key')}",
            f"--client-ca-file={self._authority.certificate}",
            f"--cert-dir={self.folder}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            "--enable-admission-plugins=PodSecurity",
            "--allow-privileged=true",
            # The endpoints of the `kubernetes` service may not be loopback addresses.
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _manager_options(self) -> list[str]:
        return [
            f"--service-account-private-key-file={self._service_account_key}",
            f"--root-ca-file={self._authority.certificate}",
        ]

    def _kwok_options(self) -> list[str]:
        kwok = program("kwok")
        assert kwok is not None
        own = [*_OWN_STAGES.glob("*.yaml"), self._logs(), self._forwards()]
        stages = sorted([*kwok.parent.glob("*.yaml"), *own])
        return [
            "--manage-all-nodes=true",
            f"--node-lease-duration-seconds={_NODE_LEASE_S}",
            "--node-ip=127.0.0.1",
            f"--node-port={self._kwok_port}",
            f"--server-address=127.0.0.1:{self._kwok_port}",
            *(f"--config={stage}" for stage in stages),
        ]

    def _logs(self) -> Path:
        """kwok's answer to requests for the logs of a pod."""
        file = self.folder / "logs.yaml"
        content = {
            "apiVersion": "kwok.x-k8s.io/v1alpha1",
            "kind": "ClusterLogs",
            "metadata": {"name": "all-pods"},
            "spec": {"logs": [{"logsFile": str(self._container_log)}]},
        }
        file.write_text(json.dumps(content))
        return file

    def _forwards(self) -> Path:
        """kwok's answer to requests to forward a port of a pod."""
        file = self.folder / "forwards.yaml"
        target = {"address": "127.0.0.1", "port": self.master_port}
        content = {
            "apiVersion": "kwok.x-k8s.io/v1alpha1",
            "kind": "ClusterPortForward",
            "metadata": {"name": "masters"},
            "spec": {"forwards": [{"ports": [MASTER_HTTP_PORT], "target": target}]},
        }
        file.write_text(json.dumps(content))
        return file


def _has_service_account(api: kubernetes.client.CoreV1Api) -> bool:
    try:
        api.read_namespaced_service_account("default", "default")
    except ApiException as refusal:
        if refusal.status == 404:
            return False
        raise
    return True


def _ready_nodes(api: kubernetes.client.CoreV1Api) -> set[str]:
    return {
        node.metadata.name
        for node in api.list_node().items
        if any(
            condition.type == "Ready" and condition.status == "True"
            for condition in node.status.conditions or []
        )
    }


def _in_base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
