"""What the state of the engine says of a stack that runs, and what follows for its next edit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pulumi
import pytest

from infra.cluster.cluster_lookup import FailedPod
from infra.cluster.fit import plan_on_clusters
from infra.cluster.labels import INSTEAD_OF
from infra.cluster.live import LiveStack, live_faults, room_faults, room_for, stand_ins
from infra.cluster.room import FIRST_ROOM
from infra.plan.applied import Applied, applied
from infra.plan.stack_plan import plan_stack
from infra.stack.config import DeploymentConfig
from infra.stack.file import parse_deployment
from tests.infra.program_stacks import stack, two_clusters
from tests.infra.recorded_program import (
    API_KEYS,
    TOKEN,
    Program,
    edit_told,
    run_program,
    state_after,
)


@pytest.fixture
def mapping(tmp_path):
    return stack(tmp_path, workload="pod")


def parse(mapping: dict[str, Any], **changes: Any) -> DeploymentConfig:
    sized = {"per_rank_params": [{"rank": rank, "cpu": 1, "memory": "4Gi"} for rank in range(2)]}
    return parse_deployment(mapping | sized | changes, on_clusters=True)


def kept(deployment: DeploymentConfig) -> Applied:
    return applied(deployment, plan_stack(deployment).ranks, TOKEN)


def kept_of(deployment: DeploymentConfig) -> Applied:
    return kept(plan_on_clusters(deployment)[0])


def live(deployment: DeploymentConfig, room: str | None = FIRST_ROOM) -> LiveStack:
    names = [deployment.rank_name(rank) for rank in range(deployment.nnodes)]
    return LiveStack(kept(deployment), dict.fromkeys(names, deployment.workload), room)


def faults(found: LiveStack, deployment: DeploymentConfig) -> list[str]:
    return [str(fault) for fault in live_faults(found, deployment)]


def rooms(program: Program) -> list[str]:
    found = {item.name: item for item in program.resources if item.kind == "pulumi:index:Stash"}
    assert found["rank-0-room"].urn in found["ranks-room"].depends_on
    return [str(found[name].replacement_trigger) for name in ("rank-0-room", "ranks-room")]


def test_the_first_up_has_nothing_to_compare_with(mapping):
    program = run_program(mapping)
    assert edit_told(program) == ""
    assert rooms(program) == [FIRST_ROOM] * 2
    assert TOKEN not in program.outputs["applied"]


def test_every_rank_goes_with_its_room_and_rank_0_first(mapping):
    program = run_program(mapping | {"nnodes": 3})
    markers = {item.name: item.urn for item in program.resources if "Stash" in item.kind}
    for rank in range(3):
        pod = program.one("Pod", f"small-rank-{rank}")
        assert pod.replace_with == (markers["rank-0-room" if rank == 0 else "ranks-room"],)
        assert set(markers.values()) <= pod.depends_on


def test_the_same_again_is_no_edit(mapping):
    state = state_after(run_program(mapping))
    again = run_program(mapping, state=state)
    assert edit_told(again) == ""
    assert rooms(again) == [FIRST_ROOM] * 2


def test_the_preview_sorts_an_edit(mapping):
    state = state_after(run_program(mapping))
    edited = mapping | {"per_rank_params": [{"rank": 1, "cpu": 3}]}
    told = edit_told(run_program(edited, state=state, preview=True))
    assert "pod: cpu of rank 1 1 -> 3" in told
    assert "swap: layers of rank 0" in " ".join(told.split())


def test_a_new_token_is_told_without_it(mapping):
    state = state_after(run_program(mapping))
    other = "another token of these tests"
    secrets = {"group_token": other, "api_keys": API_KEYS}
    program = run_program(mapping, state=state, secrets=secrets)
    assert "all pods: splitstack:group_token." in edit_told(program)
    assert other not in "".join(program.messages)


def test_pods_that_run_are_not_replaced_by_a_default(mapping):
    state = state_after(run_program(mapping))
    del mapping["workload"]
    with pytest.raises(pulumi.RunError, match="workload: is statefulset where it is not given"):
        run_program(mapping, state=state)


@pytest.mark.parametrize("workload", ["pod", "statefulset"])
def test_a_workload_that_is_given_is_taken(mapping, workload):
    state = state_after(run_program(mapping))
    program = run_program(mapping | {"workload": workload}, state=state)
    rooms_now = rooms(program)
    assert (rooms_now == [FIRST_ROOM] * 2) is (workload == "pod")
    assert ("all pods: workload pod -> statefulset" in edit_told(program)) is (workload != "pod")


def test_fewer_and_larger_ranks_want_room_and_a_retry_wants_no_more(mapping):
    old, new = parse(mapping, nnodes=3), parse(mapping)
    larger = new.model_copy(
        update={"per_rank_params": [it.model_copy(update={"cpu": 2.0}) for it in new.ranks]}
    )
    found = live(old)
    assert room_for(found, new, kept(new)) == FIRST_ROOM  # the last rank goes as ranks go
    room = room_for(found, larger, kept(larger))
    assert room != FIRST_ROOM
    half_done = LiveStack(found.applied, found.ranks, room)
    assert room_for(half_done, larger, kept(larger)) == room
    mended = larger.model_copy(update={"priority_class": "high"})
    assert room_for(half_done, mended, kept(mended)) == room
    done = live(larger, room)
    assert room_for(done, larger, kept(larger)) == room


def test_the_same_edit_once_more_wants_room_once_more(mapping):
    old, new = parse(mapping, workload="pod"), parse(mapping, workload="statefulset")
    found, seen = live(old), [FIRST_ROOM]
    for deployment in (new, old, new, old):
        room = room_for(found, deployment, kept(deployment))
        assert room not in seen
        seen.append(room)
        found = LiveStack(replace(kept(deployment), room=room), live(deployment).ranks, room)


def test_fewer_ranks_after_an_up_that_failed_want_room(mapping):
    found = live(parse(mapping, nnodes=3))
    new = parse(mapping)
    failed = LiveStack(None, found.ranks, FIRST_ROOM)
    assert room_for(failed, new, kept(new)) != FIRST_ROOM


def test_more_ranks_want_none(mapping):
    new = parse(mapping, nnodes=3)
    assert room_for(live(parse(mapping)), new, kept(new)) == FIRST_ROOM


def test_what_an_older_version_made_is_taken_over_before_it_is_changed(mapping):
    older = LiveStack(None, live(parse(mapping, nnodes=3)).ranks, None)
    assert faults(older, parse(mapping, nnodes=3)) == []
    (fault,) = faults(older, parse(mapping))
    assert "`pulumi up` once with workload: pod and nnodes: 3, then this edit" in fault
    del mapping["workload"]
    (fault,) = faults(older, parse(mapping, nnodes=3))
    assert "meanwhile: that, `pulumi up`, then `pulumi config set" in fault
    (fault,) = faults(older, parse(mapping, nnodes=3, workload="statefulset"))
    assert fault.startswith(
        "workload = 'statefulset': the ranks that run were made by an older version"
    )


def test_a_cluster_is_left_in_an_edit_of_its_own(tmp_path):
    old = parse_deployment(two_clusters(tmp_path) | {"workload": "pod"}, on_clusters=True)
    ranks = live(old)
    one = stack(tmp_path, nnodes=1, workload="pod")
    found = LiveStack(replace(kept_of(old), room=FIRST_ROOM), ranks.ranks, FIRST_ROOM)
    new = parse_deployment(one, on_clusters=True)
    assert room_for(found, new, kept_of(new)) == FIRST_ROOM  # what goes holds no room here
    other = parse_deployment(one | {"workload": "statefulset"}, on_clusters=True)
    room = room_for(found, other, kept_of(other))
    (fault,) = room_faults(found, other, room)
    assert "where small-rank-1 runs" in str(fault)
    assert list(room_faults(found, new, FIRST_ROOM)) == []


def test_namespaces_that_would_go_with_everything_in_them(mapping):
    program = run_program(mapping)
    edited, state = mapping | {"namespaces": {"create": False}}, state_after(program)
    with pytest.raises(pulumi.RunError) as refused:
        run_program(edited, state=state)
    assert "namespaces.create = False" in str(refused.value)
    assert "would delete splits, inference-server, blocks" in str(refused.value)
    assert "namespaces.retain: true" in str(refused.value)


def test_namespaces_that_were_handed_over(mapping):
    retained = run_program(mapping | {"namespaces": {"retain": True}})
    made = retained.of_kind("Namespace")
    assert len(made) == 3
    assert all(item.retain_on_delete for item in made)
    after = run_program(mapping | {"namespaces": {"create": False}}, state=state_after(retained))
    assert after.of_kind("Namespace") == []


def test_a_failed_pod_makes_way_once(mapping):
    deployment = parse(mapping)
    failed = [FailedPod("small-rank-1", "uid-1", "Evicted"), FailedPod("small-rank-7", "uid-7", "")]
    assert stand_ins(live(deployment), deployment, failed) == {"small-rank-1": "uid-1"}
    sets = parse(mapping, workload="statefulset")
    assert stand_ins(live(sets), sets, failed) == {}
    assert stand_ins(live(deployment), sets, failed) == {}


def test_what_came_in_the_place_of_a_failed_pod_stays(mapping):
    state = state_after(run_program(mapping))
    (urn,) = (urn for urn in state if urn.endswith(":Pod::small-rank-1"))
    metadata = dict(state[urn]["outputs"]["metadata"], annotations={INSTEAD_OF: "uid-1"})
    state[urn] = {"type": "kubernetes:core/v1:Pod", "outputs": {"metadata": metadata}}
    found = run_program(mapping, state=state)
    given = [found.rank(rank).manifest["metadata"].get("annotations") for rank in range(2)]
    assert given == [None, {INSTEAD_OF: "uid-1"}]
