"""What a pod in CrashLoopBackOff says of the kubelet's wait, as an API server has it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes import client

from infra.inspection.back_off import told_back_off
from infra.inspection.diagnosis import diagnose
from tests.waiting import free_ports

ENDED = datetime(2026, 11, 30, 3, 0, 0, tzinfo=UTC)
RESTARTING = "restarting failed container=stage pod=demo-rank-1_splits(5f6c3f3e-6d7c)"


def pod(waiting: dict[str, Any] | None, ended: dict[str, Any] | None) -> Any:
    """A rank's pod as GET /api/v1/namespaces/splits/pods/demo-rank-1 answers."""
    state = {"waiting": waiting} if waiting else {"running": {"startedAt": "2026-11-30T03:00:10Z"}}
    status = {
        "name": "stage",
        "image": "registry.test/runner",
        "imageID": "registry.test/runner@sha256:aa",
        "ready": False,
        "started": False,
        "restartCount": 4,
        "state": state,
        "lastState": {"terminated": ended} if ended else {},
    }
    conditions = [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
    ]
    document = {
        "metadata": {"name": "demo-rank-1", "namespace": "splits", "uid": "5f6c3f3e-6d7c"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "stage"}]},
        "status": {
            "phase": "Running",
            "conditions": conditions,
            "containerStatuses": [status],
        },
    }
    return client.ApiClient().deserialize(json.dumps(document), "V1Pod", "application/json")


def waiting(back_off: str) -> dict[str, str]:
    return {"reason": "CrashLoopBackOff", "message": f"back-off {back_off} {RESTARTING}"}


def killed(at: datetime = ENDED) -> dict[str, Any]:
    times = {"startedAt": "2026-11-30T02:59:00Z", "finishedAt": at.isoformat()}
    return {"exitCode": 137, "reason": "Error", "message": "killed", **times}


def told(found: Any, after_s: float) -> str:
    (status,) = found.status.container_statuses
    return told_back_off(status, ENDED + timedelta(seconds=after_s))


@pytest.mark.parametrize(
    ("back_off", "after_s", "expected"),
    [
        ("10s", 0, "starts it again in 10 s, 10 s after"),
        ("40s", 9.5, "starts it again in 31 s, 40 s after"),
        ("1m20s", 60, "starts it again in 20 s, 80 s after"),
        ("5m0s", 1, "starts it again in 299 s, 300 s after"),
        ("1h0m0s", 0, "starts it again in 3600 s, 3600 s after"),
        ("20s", -7, "starts it again in 20 s, 20 s after"),  # its clock is ahead of ours
        ("20s", 20, "has waited its 20 s"),
        ("20s", 95, "has waited its 20 s"),
    ],
)
def test_the_rest_of_the_wait(back_off: str, after_s: float, expected: str) -> None:
    assert expected in told(pod(waiting(back_off), killed()), after_s)


def test_without_its_end_the_whole_wait_is_told() -> None:
    assert told(pod(waiting("40s"), None), 5) == "the kubelet waits 40 s before it starts it again"


def test_a_message_in_other_words_says_that_it_waits() -> None:
    found = pod({"reason": "CrashLoopBackOff", "message": "be patient"}, killed())
    assert told(found, 5) == "the kubelet waits before it starts it again"


@pytest.mark.parametrize("reason", [None, "ContainerCreating", "ImagePullBackOff"])
def test_who_is_not_backing_off_is_not_waited_for(reason: str | None) -> None:
    state = {"reason": reason, "message": f"back-off 10s {RESTARTING}"} if reason else None
    assert told(pod(state, killed()), 5) == ""


def test_status_says_it_behind_the_crash() -> None:
    configuration = client.Configuration(host=f"http://127.0.0.1:{free_ports(1)[0]}")
    configuration.retries = False
    core = client.CoreV1Api(client.ApiClient(configuration))  # events cannot be had
    ended = datetime.now(UTC) - timedelta(seconds=5)
    diagnosis = diagnose(core, pod(waiting("5m0s"), killed(ended)))
    crash, wait = diagnosis.reason.split("; ")
    assert crash == "crash: container stage ended with code 137, 4 restarts"
    assert wait.startswith("the kubelet starts it again in 29")
    assert diagnosis.log == ("killed",)
