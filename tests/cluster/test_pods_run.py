"""What the pods run, runs: the pods of `pulumi up`, taken from the API server, answer requests."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from kubernetes.client import CoreV1Api

from runner.models.folder import resolve_model
from tests.cluster.applied_stack import DEMO, stack_mapping, write_stack
from tests.cluster.local_pods import LocalPods
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pod_network import needs_namespaces
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import DIGEST, TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs
from tests.waiting import wait_for

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), needs_namespaces(), pytest.mark.slow]

LOADED_WITHIN_S = 240.0
# As in the runner's image: the model lies in the image, not in a volume.
MODELS = "/models"


@pytest.fixture
def stack(control_plane, tmp_path):
    control_plane.add_nodes([Node("runs-1"), Node("runs-2")])
    mapping = stack_mapping(control_plane, "runs")
    mapping["inference_server"]["discovery"] = "kubernetes"
    # Nobody but us says how the rollout's pod ends.
    mapping["images"]["proxy_block"] = f"held.test/proxy-block@{DIGEST}"
    stack_file = write_stack(tmp_path, mapping)
    workspace = PulumiWorkspace(
        tmp_path / "workspace", stack_file, plugins=plugin_folders(tmp_path / "plugins")
    )
    workspace.set("splitstack:group_token", TOKEN, secret=True)
    yield workspace
    assert workspace.destroy().succeeded


def rollouts(control_plane) -> set[str]:
    """The pods of Jobs that run."""
    labels = "app.kubernetes.io/instance=runs,app.kubernetes.io/component=rollout"
    with control_plane.client() as api:
        found = CoreV1Api(api).list_namespaced_pod("runs-splits", label_selector=labels).items
        return {pod.metadata.name for pod in found if pod.status.phase == "Running"}


def served(control_plane) -> str:
    """The model that a master that starts now reads."""
    with control_plane.client() as api:
        found = CoreV1Api(api).read_namespaced_config_map("runs-spec", "runs-splits")
        assert found.data is not None
        return str(json.loads(found.data["group.json"])["model_name"])


def test_up_is_green_when_the_pods_have_answered_and_red_when_not(control_plane, stack, tmp_path):
    model = resolve_model(DEMO, weights=True).path
    pods = LocalPods(
        control_plane,
        tmp_path / "pods",
        "app.kubernetes.io/instance=runs",
        image_environment={"SPLITSTACK_BAKED_MODELS": MODELS},
        image_folders={f"{MODELS}/{DEMO.removeprefix('demo:')}": model},
    )
    with ThreadPoolExecutor(1) as beside:
        first = beside.submit(stack.up)
        wait_for(lambda: first.done() or rollouts(control_plane), 240, "the first rollout")
        assert not first.done(), first.result().output
        with pods:
            pods.finish_jobs(LOADED_WITHIN_S)
            assert first.result().succeeded, first.result().output
            assert served(control_plane) == DEMO
            pods.wait_until_ready(LOADED_WITHIN_S)
            outputs = stack.outputs()
            answer = json.loads(pods.shell(outputs["curl"]))
            assert answer["model"] == "block"
            assert answer["session_id"].startswith("session-")
            assert "Paris" in json.dumps(answer["data"])
            check_verbs_that_change_something(control_plane, pods, outputs["management_key"])


def check_verbs_that_change_something(control_plane, pods: LocalPods, key: str) -> None:
    """Of both tiers that have some, asked as whoever gets past the network policies would."""
    with control_plane.client() as api:
        core = CoreV1Api(api)
        master = core.read_namespaced_pod("runs-rank-0", "runs-splits").status.pod_ip
        labels = "app.kubernetes.io/component=proxy-block"
        [block] = core.list_namespaced_pod("runs-blocks", label_selector=labels).items
    verbs = {
        f"http://{master}:8080/set_config": {"temperature": None},
        f"http://{block.status.pod_ip}:8082/management": {"action": "reset"},
    }
    for url, body in verbs.items():
        asked = f"curl --silent --output /dev/null --write-out '%{{http_code}}' {url}"
        asked += f" --data '{json.dumps(body)}'"
        assert pods.shell(asked) == "401", url
        assert pods.shell(f"{asked} --header 'Authorization: Bearer {key}'") == "200", url
