"""What the pods run, runs: the pods of `pulumi up`, taken from the API server, answer requests.

One story: each test goes on where the one before it ended.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from kubernetes.client import CoreV1Api

from infra.inspection.status import read_cluster_status
from infra.stack.file import parse_deployment
from runner.models.folder import resolve_model
from tests.cluster.applied_stack import DEMO, stack_mapping, write_stack
from tests.cluster.local_pods import LocalPods
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pod_network import needs_namespaces
from tests.cluster.pulumi_workspace import REPOSITORY, PulumiRun, PulumiWorkspace
from tests.infra.recorded_program import DIGEST, TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs
from tests.waiting import wait_for

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), needs_namespaces(), pytest.mark.slow]

LOADED_WITHIN_S = 240.0
NAME = "runs"
PLACE, MASTER = f"{NAME}-splits", f"{NAME}-rank-0"
MODEL = "splitstack:deployment.common_params.model_name"
# As in the runner's image: the model lies in the image, not in a volume.
MODELS = "/models"


@pytest.fixture(scope="module")
def mapping(control_plane):
    control_plane.add_nodes([Node("runs-1"), Node("runs-2")])
    mapping = stack_mapping(control_plane, NAME)
    mapping["inference_server"]["discovery"] = "kubernetes"
    # Nobody but us says how the rollout's pod ends.
    mapping["images"]["proxy_block"] = f"held.test/proxy-block@{DIGEST}"
    return mapping


@pytest.fixture(scope="module")
def stack(mapping, tmp_path_factory):
    folder = tmp_path_factory.mktemp(NAME)
    workspace = PulumiWorkspace(
        folder / "workspace",
        write_stack(folder, mapping),
        plugins=plugin_folders(folder / "plugins"),
    )
    workspace.set("splitstack:group_token", TOKEN, secret=True)
    yield workspace
    assert workspace.destroy().succeeded


@pytest.fixture(scope="module")
def pods(control_plane, tmp_path_factory):
    """Their processes: started with the first rollout, once all other pods are there."""
    model = resolve_model(DEMO, weights=True).path
    made = LocalPods(
        control_plane,
        tmp_path_factory.mktemp("pods"),
        f"app.kubernetes.io/instance={NAME}",
        image_environment={"SPLITSTACK_BAKED_MODELS": MODELS},
        image_folders={f"{MODELS}/{DEMO.removeprefix('demo:')}": model},
    )
    yield made
    made.close()


@pytest.fixture
def up(control_plane, stack, pods):
    """`pulumi up`, whose rollout runs here as a process."""

    def run(**how: bool) -> PulumiRun:
        with ThreadPoolExecutor(1) as beside:
            begun = beside.submit(stack.up)
            wait_for(lambda: begun.done() or rollouts(control_plane), 240, "the rollout's pod")
            assert not begun.done(), begun.result().output
            pods.start()
            pods.finish_jobs(LOADED_WITHIN_S, **how)
            return begun.result()

    return run


def rollouts(control_plane) -> set[str]:
    """The pods of Jobs that run."""
    labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=rollout"
    with control_plane.client() as api:
        found = CoreV1Api(api).list_namespaced_pod(PLACE, label_selector=labels).items
        return {pod.metadata.name for pod in found if pod.status.phase == "Running"}


@pytest.fixture(scope="module")
def gone(tmp_path_factory) -> str:
    """A model whose configuration is here, for the plan, and nowhere in a pod."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(REPOSITORY / "infra" / "plan" / "demo_model_config.json", folder / "config.json")
    return str(folder)


def served(control_plane) -> str:
    """The model that a master that starts now reads."""
    with control_plane.client() as api:
        found = CoreV1Api(api).read_namespaced_config_map(f"{NAME}-spec", PLACE)
        assert found.data is not None
        return str(json.loads(found.data["group.json"])["model_name"])


def address_of(control_plane, pod: str) -> str:
    with control_plane.client() as api:
        return str(CoreV1Api(api).read_namespaced_pod(pod, PLACE).status.pod_ip)


def answers(stack, pods: LocalPods) -> None:
    """The question of the stack's curl line, through every tier."""
    answer = json.loads(pods.shell(stack.outputs()["curl"]))
    assert answer["model"] == "block"
    assert answer["session_id"].startswith("session-")
    assert "Paris" in json.dumps(answer["data"])


def test_up_is_green_when_the_pods_have_answered(control_plane, stack, pods, up):
    run = up()
    assert run.succeeded, run.output
    assert served(control_plane) == DEMO
    pods.wait_until_ready(LOADED_WITHIN_S)
    answers(stack, pods)


def test_verbs_that_change_something_want_the_key(control_plane, stack, pods):
    """Of both tiers that have some, asked as whoever gets past the network policies would."""
    key = stack.outputs()["management_key"]
    with control_plane.client() as api:
        labels = "app.kubernetes.io/component=proxy-block"
        [block] = CoreV1Api(api).list_namespaced_pod(f"{NAME}-blocks", label_selector=labels).items
    verbs = {
        f"http://{address_of(control_plane, MASTER)}:8080/set_config": {"temperature": None},
        f"http://{block.status.pod_ip}:8082/management": {"action": "reset"},
    }
    for url, body in verbs.items():
        asked = f"curl --silent --output /dev/null --write-out '%{{http_code}}' {url}"
        asked += f" --data '{json.dumps(body)}'"
        assert pods.shell(asked) == "401", url
        assert pods.shell(f"{asked} --header 'Authorization: Bearer {key}'") == "200", url


def test_a_rollout_that_is_killed_touches_nothing(control_plane, stack, mapping, pods, up, gone):
    stack.set(MODEL, gone)
    run = up(killed=True)
    assert not run.succeeded
    assert "exit code 137" in run.errors
    assert served(control_plane) == DEMO
    edit = read_cluster_status(NAME, parse_deployment(mapping)).edit
    assert edit.phase == "failed"
    assert "its pod ended with code 137" in edit.reason
    answers(stack, pods)


def test_a_model_that_no_rank_has_makes_up_red_and_the_old_one_serves(
    control_plane, stack, mapping, pods, up, gone
):
    run = up()
    assert not run.succeeded
    assert served(control_plane) == DEMO
    edit = read_cluster_status(NAME, parse_deployment(mapping)).edit
    topology = f"curl --silent http://{address_of(control_plane, MASTER)}:8080/topology"
    swap = json.loads(pods.shell(topology))["swap"]
    assert (edit.phase, swap["phase"]) == ("failed", "failed")
    for told in (run.errors, edit.reason, json.dumps(swap)):
        assert f"{gone}': there is no such folder" in told
    assert f"{DEMO} goes on serving" in run.errors
    answers(stack, pods)


def test_with_the_old_value_up_is_green_without_a_load(control_plane, stack, pods, up):
    stages = [f"{NAME}-rank-{rank}/stage" for rank in range(2)]
    loads = [pods.log(name).count("loaded in") for name in stages]
    assert loads == [1, 1]
    stack.set(MODEL, DEMO)
    run = up()
    assert run.succeeded, run.output
    assert run.changes == {
        f"ConfigMap::{NAME}-rollout": "replace",
        f"Job::{NAME}-rollout": "replace",
    }
    assert [pods.log(name).count("loaded in") for name in stages] == loads
    answers(stack, pods)
