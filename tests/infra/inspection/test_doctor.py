"""Doctor without a cluster: in which order it asks, and what it says of a program that fails."""

from __future__ import annotations

import pytest

from infra.inspection import declared, doctor
from infra.inspection.client import ClusterClient, ClusterError, Finding
from infra.stack.config import DeploymentConfig
from infra.stack.file import parse_deployment
from tests.infra.program_stacks import matrix


@pytest.fixture
def deployment(tmp_path, monkeypatch) -> DeploymentConfig:
    """Of two clusters; its registries are not asked."""
    monkeypatch.setattr(doctor, "check_registries", lambda *_: ())
    return parse_deployment(matrix(tmp_path)["two clusters"])


def break_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def deploy(_: object) -> None:
        raise TypeError("no such argument")

    monkeypatch.setattr(declared, "deploy", deploy)


def test_what_the_program_raises_is_a_fault(deployment, monkeypatch):
    break_program(monkeypatch)
    fine = Finding("fine", "cluster home", "answers")
    monkeypatch.setattr(doctor, "_answer", lambda _: fine)
    fault = Finding("fault", "the program", "TypeError: no such argument")
    assert list(doctor.examine(deployment)) == [fine, fault]


def test_clusters_that_do_not_answer_are_told_before_the_program_is_run(deployment, monkeypatch):
    break_program(monkeypatch)

    def answer(cluster: ClusterClient) -> Finding:
        raise ClusterError(f"cluster {cluster.cluster_id} cannot be reached")

    monkeypatch.setattr(doctor, "_answer", answer)
    found = [(item.subject, item.text) for item in doctor.examine(deployment)]
    assert found == [
        ("cluster home", "cannot be reached"),
        ("cluster away", "cannot be reached"),
    ]
