"""`splitstack repair` and `logs` of a stack in a real cluster."""

from __future__ import annotations

import itertools
from urllib.parse import urlsplit

import pytest
from kubernetes import client

from infra.inspection.client import ClusterError
from infra.inspection.pod_logs import pod_log_lines
from infra.inspection.repair import find_repairs
from infra.inspection.status import read_cluster_status
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import applied, stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.e2e.tcp_proxy import TcpProxy
from tests.infra.cli.test_app import splitstack
from tests.programs import CONTROL_PLANE, needs
from tests.waiting import free_ports, wait_for

pytestmark = needs(*CONTROL_PLANE)


@pytest.fixture(scope="module", autouse=True)
def nodes(control_plane):
    control_plane.add_nodes([Node("repair-node", cpu="64", memory="512Gi")])


def pods(core: client.CoreV1Api, namespace: str) -> dict[str, client.V1Pod]:
    return {item.metadata.name: item for item in core.list_namespaced_pod(namespace).items}


def test_failed_and_left_over_pods_go_when_that_is_wanted(control_plane, tmp_path):
    mapping = stack_mapping(control_plane, "torn", nnodes=3)
    smaller = mapping | {"nnodes": 2}
    path = str(write_stack(tmp_path, smaller))
    with applied(control_plane, mapping), control_plane.client() as api:
        core = client.CoreV1Api(api)
        names = [f"torn-rank-{rank}" for rank in range(3)]
        wait_for(
            lambda: all(
                pods(core, "torn-splits")[name].status.phase == "Running" for name in names
            ),
            60,
            "every rank runs",
        )
        failed = {"status": {"phase": "Failed", "reason": "Evicted"}}
        core.patch_namespaced_pod_status("torn-rank-1", "torn-splits", failed)
        assert [str(item) for item in find_repairs(parse_deployment(smaller))] == [
            "delete pod torn-splits/torn-rank-1: it has failed (Evicted) and stays so",
            "delete pod torn-splits/torn-rank-2: it is rank 2, and nnodes is 2",
        ]
        left = read_cluster_status("torn", parse_deployment(smaller)).pods[2]
        assert (left.name, left.ready) == ("torn-rank-2", True)
        assert "is left over, nnodes is 2" in left.reason
        refused = splitstack(tmp_path, "repair", "-s", path, stdin="n\n")
        assert refused.returncode == 0, refused.stderr
        assert "do it?" in refused.stdout
        assert {*names} <= pods(core, "torn-splits").keys()
        done = splitstack(tmp_path, "repair", "-s", path, "--yes")
        assert "bare pods" in done.stdout
        wait_for(lambda: not {*names[1:]} & pods(core, "torn-splits").keys(), 60, "both gone")
        assert names[0] in pods(core, "torn-splits")
        again = splitstack(tmp_path, "repair", "-s", path)
        assert again.stdout == "nothing to repair\n"


def test_a_pod_on_a_node_that_is_gone(control_plane):
    mapping = stack_mapping(
        control_plane,
        "orphan",
        nnodes=1,
        per_rank_params=[{"rank": 0, "node_id": "short-lived", "cpu": 1, "memory": "4Gi"}],
    )
    control_plane.add_nodes([Node("short-lived")])
    with applied(control_plane, mapping), control_plane.client() as api:
        core = client.CoreV1Api(api)
        wait_for(
            lambda: pods(core, "orphan-splits")["orphan-rank-0"].status.phase == "Running",
            60,
            "the rank runs",
        )
        core.delete_node("short-lived")
        (repair,) = wait_for(lambda: find_repairs(parse_deployment(mapping)), 30, "a repair")
        assert "its node short-lived is gone" in str(repair)
        assert repair.forced
        repair.do()
        wait_for(lambda: "orphan-rank-0" not in pods(core, "orphan-splits"), 30, "it is gone")
        repair.do()  # what has gone already is as wanted


def test_the_logs_of_pods(control_plane, tmp_path):
    control_plane.set_container_log("first line", "last line")
    mapping = stack_mapping(control_plane, "told")
    deployment = parse_deployment(mapping)
    with pytest.raises(ClusterError, match="told has no pod that has begun"):
        list(pod_log_lines(deployment, (), follow=False))
    with applied(control_plane, mapping):

        def lines(*names: str) -> list[str]:
            try:
                return list(pod_log_lines(deployment, names, follow=False))
            except ClusterError:
                return []

        wait_for(lambda: "told-rank-1/stage last line" in lines("told-rank-1"), 60, "a log")
        assert lines("told-rank-1") == [
            "told-rank-1/stage first line",
            "told-rank-1/stage last line",
        ]
        assert any(line.startswith("told-rank-0/master ") for line in lines())
        followed = pod_log_lines(deployment, ("told-rank-1",), follow=True)
        assert list(itertools.islice(followed, 2)) == lines("told-rank-1")
        goes_on_after_a_cut(control_plane, tmp_path, lines("told-rank-1"))
        path = str(write_stack(tmp_path, mapping))
        done = splitstack(tmp_path, "logs", "-s", path, "told-rank-1")
        assert done.stdout.splitlines() == lines("told-rank-1")
        done = splitstack(tmp_path, "logs", "-s", path, "nobody")
        assert done.returncode == 2
        assert "told has no pod named nobody that has begun" in done.stderr


def goes_on_after_a_cut(control_plane, folder, before):
    (port,) = free_ports(1)
    server = urlsplit(control_plane.url)
    network = TcpProxy(("127.0.0.1", port), (server.hostname, server.port))
    kubeconfig = folder / "through-a-network"
    text = control_plane.kubeconfig.read_text()
    kubeconfig.write_text(text.replace(control_plane.url, f"https://127.0.0.1:{port}"))
    clusters = {"home": {"kubeconfig": str(kubeconfig)}}
    deployment = parse_deployment(stack_mapping(control_plane, "told", clusters=clusters))
    try:
        followed = pod_log_lines(deployment, ("told-rank-1",), follow=True)
        assert list(itertools.islice(followed, 2)) == before
        assert network.cut()
        control_plane.add_container_log("one more", "and more")
        found = list(itertools.islice(followed, 2))
        assert found == ["told-rank-1/stage one more", "told-rank-1/stage and more"]
    finally:
        network.close()
