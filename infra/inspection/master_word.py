"""What a stack's master says of its group: asked through the kubelet, as `kubectl port-forward`
does, since network policies keep everybody else away from it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import urllib3.exceptions
from kubernetes import client
from kubernetes.stream import portforward

from contract.specs import MASTER_HTTP_PORT
from infra.inspection.diagnosis import Pod, condition
from infra.plan.balance import balance_advice

# The API server waits longer for a node that is gone, and the rest of a status need not.
_PATIENCE_S = 5.0
_MASTER = "master"
_UNANSWERED = (
    client.ApiException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)


@dataclass(frozen=True)
class RankDevice:
    """A rank's GPU as its process reports it: all of its memory, and what weights and KV take."""

    uuid: str
    memory_bytes: int | None
    used_bytes: int | None


@dataclass(frozen=True)
class MasterWord:
    """`state` as in /topology; `reason` "" where the group serves. `devices` are by rank. `advice`
    is what measured times say of the cut, "" nothing."""

    state: str
    reason: str
    devices: Mapping[int, RankDevice] = field(default_factory=dict)
    advice: str = ""


def ask_master(core: client.CoreV1Api, pod: Pod) -> MasterWord | None:
    """Of rank 0's pod; None where its master does not run or answer, or one may not forward."""
    if not _runs(pod):
        return None
    answers: SimpleQueue[MasterWord | None] = SimpleQueue()
    # Of its own: while it forwards, the client's calls are no ordinary ones.
    own = client.CoreV1Api(client.ApiClient(core.api_client.configuration))

    def ask() -> None:
        found = None
        with contextlib.suppress(*_UNANSWERED):
            found = read_word(_topology(own, pod))
        answers.put(found)

    threading.Thread(target=ask, daemon=True).start()
    with contextlib.suppress(Empty):
        return answers.get(timeout=_PATIENCE_S)
    return None


def read_word(topology: Mapping[str, Any]) -> MasterWord:
    """Out of what /topology answers; ValueError where that is something else."""
    try:
        devices = {
            int(rank["rank"]): RankDevice(
                rank.get("device_uuid", ""),
                rank.get("device_bytes"),
                (rank["loaded"] and rank["weight_bytes"] + rank["kv_bytes"]) or None,
            )
            for rank in topology["ranks"]
        }
        advice = balance_advice(topology)
        return MasterWord(topology["state"], topology["reason"], devices, advice)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no topology of this version: {error!r}") from error


def _runs(pod: Pod) -> bool:
    ready = condition(pod, "Ready")
    if ready and ready.reason == "NodeNotReady":
        return False
    statuses = pod.status.container_statuses or []
    return any(it.name == _MASTER and it.state and it.state.running for it in statuses)


def _topology(core: client.CoreV1Api, pod: Pod) -> Mapping[str, Any]:
    forward = portforward(
        core.connect_get_namespaced_pod_portforward,
        pod.metadata.name,
        pod.metadata.namespace,
        ports=str(MASTER_HTTP_PORT),
    )
    try:
        connection = http.client.HTTPConnection(_MASTER)
        connection.sock = forward.socket(MASTER_HTTP_PORT)
        connection.sock.settimeout(_PATIENCE_S)
        connection.request("GET", "/topology")
        answer = json.loads(connection.getresponse().read())
    finally:
        forward.close()
    if not isinstance(answer, dict):
        raise ValueError("no topology")  # noqa: TRY004 (what came, not what was called)
    return answer
