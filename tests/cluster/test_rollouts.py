"""`up` waits for an answer: the rollout's Job under the real engine, whose pods kwok ends."""

from __future__ import annotations

import pytest
from kubernetes import client

from infra.inspection.status import read_cluster_status
from infra.stack.file import parse_deployment
from tests.cluster.applied_stack import REGISTRY, stack_mapping, write_stack
from tests.cluster.nodes import Node
from tests.cluster.plugin_choice import plugin_folders
from tests.cluster.pulumi_workspace import PulumiWorkspace
from tests.infra.recorded_program import DIGEST, TOKEN
from tests.programs import CONTROL_PLANE, PULUMI, needs

pytestmark = [needs(*CONTROL_PLANE, *PULUMI), pytest.mark.slow]

DEPLOYMENT = "splitstack:deployment"
NAME = "proved"
LENGTH = f"{DEPLOYMENT}.common_params.max_model_len"
IMAGE = f"{DEPLOYMENT}.images.proxy_block"
ROLLOUT = {
    f"ConfigMap::{NAME}-rollout": "replace",
    f"Job::{NAME}-rollout": "replace",
    f"ConfigMap::{NAME}-spec": "update",
}


@pytest.fixture(scope="module")
def mapping(control_plane):
    control_plane.add_nodes([Node("rollouts", cpu="64", memory="512Gi")])
    return stack_mapping(control_plane, NAME)


@pytest.fixture(scope="module")
def workspace(mapping, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    made = PulumiWorkspace(
        folder / "workspace",
        write_stack(folder, mapping),
        plugins=plugin_folders(folder / "plugin"),
    )
    made.set("splitstack:group_token", TOKEN, secret=True)
    yield made
    assert made.destroy().succeeded


@pytest.fixture
def served(control_plane):
    """What a master that starts now reads, and the Jobs that are there."""

    def read() -> tuple[str, list[str]]:
        with control_plane.client() as api:
            place = f"{NAME}-splits"
            found = client.CoreV1Api(api).read_namespaced_config_map(f"{NAME}-spec", place)
            jobs = client.BatchV1Api(api).list_namespaced_job(place).items
        assert found.data is not None
        return found.data["group.json"], [job.metadata.name for job in jobs]

    return read


def test_the_first_up_asks_the_first_question(workspace, served):
    run = workspace.up()
    assert run.succeeded, run.output
    digits = workspace.outputs()["spec_hash"][:8]
    assert served()[1] == [f"{NAME}-rollout-{digits}"]


def test_a_second_up_asks_nothing(workspace):
    assert workspace.up().changes == {}


def test_an_edit_is_handed_over_and_then_kept(workspace, served):
    before, _ = served()
    workspace.set(LENGTH, "1024")
    run = workspace.up()
    assert run.succeeded, run.output
    assert ROLLOUT.items() <= run.changes.items()
    after, jobs = served()
    assert before != after
    assert jobs == [f"{NAME}-rollout-{workspace.outputs()['spec_hash'][:8]}"]


def test_one_that_fails_is_red_with_its_reason_and_kept_nowhere(workspace, served, mapping):
    before, _ = served()
    workspace.set(LENGTH, "512")
    workspace.set(IMAGE, f"failing.test/proxy-block@{DIGEST}")
    run = workspace.up()
    assert not run.succeeded
    assert "rank 1: its weights take 9 GB of 4 GB" in run.errors
    assert served()[0] == before
    edit = read_cluster_status(NAME, parse_deployment(mapping)).edit
    assert (edit.phase, edit.reason) == ("failed", "rank 1: its weights take 9 GB of 4 GB")


def test_the_same_again_is_tried_again(workspace):
    run = workspace.preview()
    assert run.changes[f"Job::{NAME}-rollout"] == "replace"
    run = workspace.up()
    assert not run.succeeded
    assert run.changes[f"Job::{NAME}-rollout"] == "replace"


def test_the_former_value_is_handed_over_again(workspace, served):
    before, _ = served()
    workspace.set(LENGTH, "1024")
    workspace.set(IMAGE, f"{REGISTRY}/proxy-block@{DIGEST}")
    run = workspace.up()
    assert run.succeeded, run.output
    # The master may have taken the other one: it was the question that failed.
    assert run.changes[f"Job::{NAME}-rollout"] == "replace"
    assert f"ConfigMap::{NAME}-spec" not in run.changes
    assert served()[0] == before
    assert workspace.up().changes == {}


def test_a_rank_that_is_no_longer_wanted_goes_after_the_question(workspace):
    workspace.set(f"{DEPLOYMENT}.nnodes", "1")
    run = workspace.up()
    assert run.succeeded, run.output
    gone = {f"{kind}::{NAME}-rank-1": "delete" for kind in ("Pod", "ConfigMap")}
    assert run.changes == ROLLOUT | gone
    asked = run.steps.index(("create-replacement", f"Job::{NAME}-rollout"))
    assert run.steps.index(("delete", f"Pod::{NAME}-rank-1")) > asked
