"""The pods of a cluster with simulated nodes, run here: their containers as local processes.

What the API server has of a pod is taken as it is: command, environment, mounted files, probes.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, ApiException, CoreV1Api

from infra.local.process import die_with_parent
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pod_network import GATEWAY, Namespace, PodNetwork
from tests.waiting import wait_for

_SIGNALLED = 128
_CONTAINER_ROOT = Path(__file__).with_name("container_root.py")
_PROJECT = str(Path(__file__).parents[2])
_SEARCHED = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


class LocalPods:
    """Runs every pod with the labels `selector` from `start` until `close`. `folder` gets files and
    logs.

    This project and its virtual environment stand in for the images; what else an image would have
    is `image_environment` and `image_folders`: folders here by their paths in containers.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        folder: Path,
        selector: str,
        image_environment: Mapping[str, str],
        image_folders: Mapping[str, Path],
    ) -> None:
        self._control_plane = control_plane
        self._folder = folder
        self._selector = selector
        self._image_environment = dict(image_environment)
        self._image_mounts = [
            {"source": str(source), "target": target, "read_only": True}
            for target, source in image_folders.items()
        ]
        self._network = PodNetwork()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._pods: list[tuple[dict[str, Any], Namespace]] = []

    def start(self) -> None:
        """The pods that are there, and the addresses of services. Once: then it does nothing."""
        if self._pods:
            return
        port = int(self._control_plane.url.rsplit(":", 1)[1])
        self._network.publish_outside(port)
        with self._control_plane.client() as client:
            self._core = CoreV1Api(client)
            self._hosts = self._services(client, self._listed())
        self._add_pods()

    def close(self) -> None:
        """End every process."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._network.close()

    def wait_until_ready(self, limit_s: float) -> None:
        """Ask the readiness probes of all containers until each one agrees."""
        for pod, namespace in self._pods:
            for container in pod["spec"]["containers"]:
                if "readinessProbe" not in container:
                    continue
                name = f"{pod['metadata']['name']}/{container['name']}"
                wait_for(
                    lambda n=name, p=namespace, c=container: self._is_ready(n, p, c), limit_s, name
                )

    def finish_jobs(self, limit_s: float, *, killed: bool = False) -> None:
        """Run the pods that have come since, and tell the API server how those of Jobs end; with
        `killed` as soon as they have begun, by SIGKILL."""
        self._add_pods()
        for pod, _ in self._pods:
            owners = pod["metadata"].get("ownerReferences", [])
            if any(owner["kind"] == "Job" for owner in owners) and pod["status"]:
                self._finish(pod, limit_s, killed)
                pod["status"] = {}

    def _finish(self, pod: dict[str, Any], limit_s: float, killed: bool) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        (container,) = pod["spec"]["containers"]
        process = self._processes[f"{name}/{container['name']}"]
        if killed:
            process.kill()
        code = process.wait(limit_s)
        if code < 0:  # as container runtimes count the end by a signal
            code = _SIGNALLED - code
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        words = (self._folder / name / container["name"] / "termination-log").read_text()
        ended = {
            "exitCode": code,
            "reason": "Error" if code else "Completed",
            "message": words,
            "startedAt": now,
            "finishedAt": now,
        }
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
        phase = "Failed" if code else "Succeeded"
        reason = "PodFailed" if code else "PodCompleted"  # as the kubelet says it
        unready = {"type": "Ready", "status": "False", "reason": reason}
        body = {"status": {"phase": phase, "conditions": [unready], "containerStatuses": [status]}}
        self._core.patch_namespaced_pod_status(name, namespace, body)

    def shell(self, line: str) -> str:
        """The output of a shell line, run on the node."""
        return self._network.node.run("sh", "-c", line)

    def log(self, name: str) -> str:
        """What the container `<pod>/<container>` wrote."""
        return (self._folder / name / "log").read_text(errors="replace")

    def _listed(self) -> list[dict[str, Any]]:
        found = self._core.list_pod_for_all_namespaces(label_selector=self._selector).items
        pods = [_plain(self._core.api_client, pod) for pod in found]
        assert pods, f"no pods with {self._selector}"
        return pods

    def _add_pods(self) -> None:
        known = {pod["metadata"]["uid"] for pod, _ in self._pods}
        for pod in self._listed():
            if pod["metadata"]["uid"] in known or "deletionTimestamp" in pod["metadata"]:
                continue
            namespace = self._network.add_pod(pod["status"]["podIP"])
            self._pods.append((pod, namespace))
            volumes = self._volumes(pod)
            for container in pod["spec"]["containers"]:
                self._run(pod, container, volumes, namespace)

    def _services(self, client: ApiClient, pods: list[dict[str, Any]]) -> str:
        """Publishes node ports; returns lines of a hosts file with the names of services."""
        lines = ["127.0.0.1 localhost"]
        found = self._core.list_service_for_all_namespaces(label_selector=self._selector)
        for service in (_plain(client, item) for item in found.items):
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            for pod in _selected(service, pods):
                address = pod["status"]["podIP"]
                lines.append(f"{address} {name}.{namespace} {name}.{namespace}.svc")
                for port in service["spec"]["ports"]:
                    target = _target_port(port, pod)
                    # There is one address for a name here, and no translation of ports.
                    assert target == port["port"], f"{name}: {port}"
                    if "nodePort" in port:
                        self._network.publish_pod(port["nodePort"], address, target)
        return "\n".join(lines) + "\n"

    def _volumes(self, pod: dict[str, Any]) -> dict[str, Path]:
        """A folder for each volume, filled."""
        folders = {}
        for volume in pod["spec"].get("volumes", []):
            folder = self._folder / pod["metadata"]["name"] / "volumes" / volume["name"]
            folder.mkdir(parents=True)
            for source in volume.get("projected", {}).get("sources", [volume]):
                for name, text in self._files(pod, source).items():
                    (folder / name).write_text(text)
            folders[volume["name"]] = folder
        return folders

    def _files(self, pod: dict[str, Any], source: dict[str, Any]) -> dict[str, str]:
        namespace = pod["metadata"]["namespace"]
        if "configMap" in source:
            name = source["configMap"]["name"]
            try:
                return dict(self._core.read_namespaced_config_map(name, namespace).data)
            except ApiException:
                if source["configMap"].get("optional"):
                    return {}
                raise
        if "secret" in source:
            name = source["secret"].get("secretName") or source["secret"]["name"]
            data = self._core.read_namespaced_secret(name, namespace).data
            return {key: _decoded(value) for key, value in data.items()}
        if "serviceAccountToken" in source:
            account = pod["spec"]["serviceAccountName"]
            body = {"spec": {"audiences": [], "expirationSeconds": 3600}}
            answer = self._core.create_namespaced_service_account_token(account, namespace, body)
            return {source["serviceAccountToken"]["path"]: answer.status.token}
        if "downwardAPI" in source:
            return {item["path"]: _field(pod, item) for item in source["downwardAPI"]["items"]}
        assert {"emptyDir", "name"} == set(source), f"volumes of this kind are not run: {source}"
        return {}

    def _run(
        self,
        pod: dict[str, Any],
        container: dict[str, Any],
        volumes: dict[str, Path],
        namespace: Namespace,
    ) -> None:
        name = f"{pod['metadata']['name']}/{container['name']}"
        folder = self._folder / name
        (folder / "root").mkdir(parents=True)
        termination_log = folder / "termination-log"
        termination_log.touch()
        description = {
            "root": str(folder / "root"),
            "files": {"/etc/hosts": self._hosts},
            "termination_log": str(termination_log),
            "mounts": self._image_mounts
            + [
                {
                    "source": str(volumes[mount["name"]]),
                    "target": mount["mountPath"],
                    "read_only": mount.get("readOnly", False),
                }
                for mount in container.get("volumeMounts", [])
            ]
            # Last: a clone in /tmp would be covered by the pod's own /tmp.
            + [{"source": _PROJECT, "target": _PROJECT, "read_only": True}],
            "environment": self._environment(pod, container),
            "command": [*container["command"], *container.get("args", [])],
        }
        (folder / "container.json").write_text(json.dumps(description))
        inside = [sys.executable, str(_CONTAINER_ROOT)]
        with (folder / "log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [*namespace.entering(), "unshare", "--mount", *inside, folder / "container.json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(),
            )

    def _environment(self, pod: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
        port = self._control_plane.url.rsplit(":", 1)[1]
        environment = {"PATH": _SEARCHED, "PYTHONPATH": _PROJECT, "OMP_NUM_THREADS": "1"}
        environment |= self._image_environment
        # A kubelet adds these.
        environment |= {"KUBERNETES_SERVICE_HOST": GATEWAY, "KUBERNETES_SERVICE_PORT": port}
        for variable in container.get("env", []):
            source = variable.get("valueFrom")
            environment[variable["name"]] = (
                _field(pod, source) if source else variable.get("value", "")
            )
        return environment

    def _is_ready(self, name: str, namespace: Namespace, container: dict[str, Any]) -> bool:
        process = self._processes[name]
        assert process.poll() is None, f"{name} ended:\n{self.log(name)[-3000:]}"
        asked = container["readinessProbe"]["httpGet"]
        url = f"http://127.0.0.1:{asked['port']}{asked['path']}"
        probe = [*namespace.entering(), "curl", "--silent", "--fail", "--max-time", "5", url]
        return subprocess.run(probe, capture_output=True).returncode == 0


def _plain(client: ApiClient, found: Any) -> dict[str, Any]:
    """As in a manifest."""
    manifest: dict[str, Any] = client.sanitize_for_serialization(found)
    return manifest


def _selected(service: dict[str, Any], pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods behind a service."""
    selector = service["spec"]["selector"].items()
    return [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        and selector <= pod["metadata"]["labels"].items()
    ]


def _target_port(port: dict[str, Any], pod: dict[str, Any]) -> int:
    named = {
        item.get("name"): item["containerPort"]
        for container in pod["spec"]["containers"]
        for item in container.get("ports", [])
    }
    return int(named.get(port["targetPort"], port["targetPort"]))


def _field(pod: dict[str, Any], source: dict[str, Any]) -> str:
    value: Any = pod
    for part in source["fieldRef"]["fieldPath"].split("."):
        value = value[part]
    return str(value)


def _decoded(value: Any) -> str:
    return base64.b64decode(value).decode()
