"""What every pod of a stack must keep to. Each rule yields one sentence for each violation."""

from __future__ import annotations

import re
from collections.abc import Iterator

from infra.policy.resources import Object, PodView, Resource, pods, section

_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEYS?|ACCESS_KEY|PRIVATE_KEY)$",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_NEEDED_RESOURCES = {"requests": ("cpu", "memory"), "limits": ("cpu", "memory")}


def mutable_image(resource: Resource) -> Iterator[str]:
    """An image by tag may be another tomorrow, and another on each node."""
    for pod in pods(resource):
        for container in pod.containers:
            image = str(container.get("image", ""))
            if not _DIGEST.search(image):
                yield (
                    f"{_place(pod, container)}: image {image!r} is not pinned; "
                    "name it by digest, as in name@sha256:..."
                )


def missing_limits(resource: Resource) -> Iterator[str]:
    """What has no limit takes its neighbours' share; what asks for nothing is evicted first."""
    for pod in pods(resource):
        for container in pod.containers:
            resources = section(container, "resources")
            missing = [
                f"{kind}.{name}"
                for kind, names in _NEEDED_RESOURCES.items()
                for name in names
                if not section(resources, kind).get(name)
            ]
            if missing:
                yield f"{_place(pod, container)}: resources lack {', '.join(missing)}"


def mounted_token(resource: Resource) -> Iterator[str]:
    """Only a pod with a ServiceAccount of its own may hold a token for the API server."""
    for pod in pods(resource):
        account = pod.spec.get("serviceAccountName", "default") or "default"
        if pod.spec.get("automountServiceAccountToken") is not False and account == "default":
            yield (
                f"{pod.label}: automountServiceAccountToken must be false, or serviceAccountName "
                "name an account made for it"
            )


def plain_text_secret(resource: Resource) -> Iterator[str]:
    """Secrets are mounted files: an environment is inherited, and shown by `kubectl describe`."""
    for pod in pods(resource):
        for container in pod.containers:
            for name, value in pod.environment(container).items():
                if _SECRET_NAME.search(name) or _URL_PASSWORD.search(value):
                    yield (
                        f"{_place(pod, container)}: variable {name} holds a secret in plain text; "
                        "keep it in a Secret and mount it as a file"
                    )
    if resource.short_kind == "ConfigMap":
        for name, value in section(resource.properties, "data").items():
            if _SECRET_NAME.search(name) or _URL_PASSWORD.search(str(value)):
                yield f"{resource.label}: {name} holds a secret; keep it in a Secret"


def misplaced_rank(resource: Resource) -> Iterator[str]:
    """A rank with physical devices runs on the node that has them, found by the scheduler."""
    for pod in pods(resource):
        if pod.spec.get("nodeName"):
            yield (
                f"{pod.label}: nodeName goes past the scheduler; use required node affinity on "
                "kubernetes.io/hostname"
            )
        devices = [
            variables["NVIDIA_VISIBLE_DEVICES"]
            for variables in map(pod.environment, pod.containers)
            if variables.get("NVIDIA_VISIBLE_DEVICES") not in (None, "", "none", "void")
        ]
        if devices and len(set(pod.pinned_nodes)) != 1:
            yield (
                f"{pod.label}: NVIDIA_VISIBLE_DEVICES={devices[0]} without one node in required "
                "node affinity: whose devices are meant?"
            )


def _place(pod: PodView, container: Object) -> str:
    return f"{pod.label}, container {container.get('name')}"
