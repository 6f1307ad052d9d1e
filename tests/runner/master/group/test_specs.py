"""The state of a swap: what is heard, and what every rank is to have."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from contract.specs import GroupSpec, RankPart, spec_hash
from runner.errors import NotServing
from runner.master.group.spec_changes import changed_keys, what_changes
from runner.master.group.specs import RETURNS_WITHIN_S, Specs
from runner.master.group.swap import Swap, SwapRunning
from runner.transport.control import Served

STALL_S = 100.0
OLD = GroupSpec("d", "old", (RankPart((0, 2)), RankPart((2, 4))), model_revision="a")
NEW = replace(OLD, model_name="new", ranks=(RankPart((0, 1)), RankPart((1, 3)), RankPart((3, 4))))
DIGEST = spec_hash(NEW)


def serving() -> Specs:
    specs = Specs(STALL_S)
    specs.in_force = Served(OLD, "commit of old")
    return specs


def begun(specs: Specs, spec: GroupSpec = NEW) -> Swap:
    swap = specs.push(spec, 0.0)
    assert swap is not None
    specs.commit_known(swap, "commit of new", 1.0)
    return swap


def prepared(specs: Specs, spec: GroupSpec = NEW) -> Swap:
    swap = begun(specs, spec)
    for rank in range(len(spec.ranks)):
        specs.told(rank, swap.spec_hash, 2.0)
        specs.prepared(rank, swap.spec_hash, 3.0)
    return swap


def states(swap: Swap) -> list[str]:
    return [item.state for item in swap.ranks]


def test_the_whole_way() -> None:
    specs = serving()
    swap = specs.push(NEW, 0.0)
    assert swap is not None
    assert specs.order(2) is None  # the master looks for the commit
    specs.commit_known(swap, "commit of new", 1.0)
    order = specs.order(2)
    assert order is not None
    assert (order.served.spec, order.load, order.in_force) == (NEW, False, False)
    for rank in range(3):
        assert swap.phase == "preparing"
        specs.told(rank, DIGEST, 2.0)
        specs.progress(rank, DIGEST, 10, 20, 2.5)
        assert states(swap)[rank] == "fetching"
        specs.prepared(rank, DIGEST, 3.0, ahead=rank == 1)
    assert swap.phase == "draining"
    assert specs.requests_wait
    assert specs.to_form == specs.in_force == Served(OLD, "commit of old")
    specs.drained(4.0)
    assert swap.describe()["phase"] == "loading"
    assert specs.to_form == Served(NEW, "commit of new")
    order = specs.order(0)
    assert order is not None
    assert order.load
    for rank in range(3):
        specs.told(rank, DIGEST, 5.0)
        specs.loaded(rank, DIGEST, 6.0)
    assert specs.requests_wait
    specs.answered(7.0)
    assert specs.in_force == Served(NEW, "commit of new")
    assert not specs.requests_wait
    assert swap.describe() == {
        "spec_hash": DIGEST,
        "model_name": "new",
        "phase": "serving",
        "reason": "",
        "since": 7.0,
        "ranks": [
            {
                "rank": rank,
                "state": "loaded",
                "fetched_bytes": 10,
                "wanted_bytes": 20,
                "loaded_ahead": rank == 1,
                "reason": "",
            }
            for rank in range(3)
        ],
    }


def test_what_is_in_force_is_no_swap() -> None:
    specs = serving()
    assert specs.push(OLD, 0.0) is None
    assert specs.swap is None


def test_limits_are_in_force_at_once() -> None:
    specs = serving()
    for change in (
        {"request_deadline_s": 1.0},
        {"max_concurrent_requests": 1},
        {"prefill_token_budget": 1},
        {"load_timeout_s": 1.0},
        {"swap_drain_s": 0.0},
    ):
        spec = replace(OLD, **change)  # type: ignore[arg-type]
        assert specs.push(spec, 0.0) is None
        assert specs.in_force == Served(spec, "commit of old")
    assert specs.swap is None


def test_main_is_what_a_model_without_a_revision_is() -> None:
    specs = Specs(STALL_S)
    specs.in_force = Served(replace(OLD, model_revision=""), "c")
    assert specs.push(replace(OLD, model_revision="main"), 0.0) is None
    assert specs.push(replace(OLD, model_revision="v2"), 0.0) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "x"},
        {"model_revision": "b"},
        {"dtype": "bfloat16"},
        {"max_model_len": 10},
        {"ranks": (RankPart((0, 4)),)},
        {"ranks": (RankPart((0, 3)), RankPart((3, 4)))},
        {"ranks": (RankPart((0, 2), 5), RankPart((2, 4)))},
    ],
)
def test_everything_else_is_a_swap(change: dict[str, object]) -> None:
    spec = replace(OLD, **change)  # type: ignore[arg-type]
    assert serving().push(spec, 0.0) is not None
    assert changed_keys(OLD, spec) == set(change)


def test_a_second_one_is_refused_by_name_and_the_same_one_is_no_second() -> None:
    specs = serving()
    swap = begun(specs)
    assert specs.push(NEW, 1.0) is swap
    with pytest.raises(SwapRunning, match=rf"{DIGEST[:12]} \(new\) .* its phase is preparing"):
        specs.push(replace(NEW, dtype="bfloat16"), 1.0)


def test_the_old_one_takes_a_swap_back_that_has_touched_nothing() -> None:
    specs = serving()
    swap = begun(specs)
    assert specs.push(OLD, 1.0) is None
    assert (swap.phase, specs.requests_wait) == ("failed", False)
    assert "taken back" in swap.reason
    swap = prepared(specs)
    with pytest.raises(SwapRunning):
        specs.push(OLD, 4.0)


def test_who_cannot_prepare_ends_it_and_nothing_was_touched() -> None:
    specs = serving()
    swap = begun(specs)
    specs.told(1, DIGEST, 2.0)
    specs.rank_failed(1, DIGEST, "no such model", 3.0)
    assert (swap.phase, swap.reason) == ("failed", "rank 1: no such model")
    assert (swap.ranks[1].state, swap.ranks[1].reason) == ("failed", "no such model")
    assert not specs.requests_wait
    order = specs.order(1)
    assert order is not None
    assert (order.served.spec, order.in_force) == (OLD, True)
    assert specs.order(2) is None


def test_a_rank_that_is_lost_ends_it_unless_it_was_only_cut_off() -> None:
    specs = serving()
    swap = begun(specs)
    specs.rank_lost(2, "gone", 2.0)  # it had no part of this swap yet
    specs.rank_joined(2, same_process=False, now=3.0)
    specs.rank_lost(7, "gone", 2.0)
    specs.told(2, DIGEST, 3.0)
    specs.rank_lost(2, "silent", 4.0)
    specs.look(5.0)
    specs.rank_joined(2, same_process=True, now=6.0)
    specs.look(50.0)
    assert swap.running
    specs.rank_lost(2, "gone", 51.0)
    specs.rank_joined(2, same_process=False, now=52.0)
    assert (swap.phase, swap.reason) == ("failed", "rank 2: gone")
    swap = begun(specs)
    specs.told(1, DIGEST, 60.0)
    specs.rank_lost(1, "gone", 61.0)
    specs.look(70.0)
    assert swap.running
    specs.look(72.0)
    assert (swap.phase, swap.reason) == ("failed", "rank 1: gone")
    assert swap.ranks[1].reason == "gone"


@pytest.mark.parametrize("how", ["load", "lost", "epoch"])
def test_what_fails_after_the_weights_are_dropped_brings_the_old_ones_back(how: str) -> None:
    specs = serving()
    swap = prepared(specs)
    specs.drained(4.0)
    if how == "load":
        specs.rank_failed(1, DIGEST, "no memory", 5.0)
    elif how == "lost":
        specs.rank_lost(1, "gone", 5.0)
        specs.rank_joined(1, same_process=False, now=6.0)
    else:
        specs.not_answered(Served(OLD, "commit of old"), "the old epoch ended", 5.0)
        assert swap.running
        specs.not_answered(Served(NEW, "commit of new"), "a step raised", 5.0)
    assert swap.phase == "failed"
    assert specs.to_form == Served(OLD, "commit of old")
    assert specs.requests_wait  # until the old one is back
    specs.formed()
    assert not specs.requests_wait


def test_while_the_old_one_comes_back_no_other_is_begun_unless_it_takes_too_long() -> None:
    specs = serving()
    swap = prepared(specs)
    specs.drained(4.0)
    specs.rank_failed(1, DIGEST, "no memory", 5.0)
    with pytest.raises(NotServing, match=r"coming back \(rank 1: no memory\): push again when"):
        specs.push(NEW, 6.0)
    assert specs.push(OLD, 6.0) is None
    assert specs.swap is swap
    specs.formed()
    assert specs.push(NEW, 7.0) is not None
    specs = serving()
    prepared(specs)
    specs.drained(4.0)
    specs.rank_failed(1, DIGEST, "no memory", 5.0)
    assert specs.push(NEW, 5.0 + RETURNS_WITHIN_S) is not None


def test_who_has_the_weights_of_a_try_that_failed_is_prepared_and_loaded() -> None:
    specs = serving()
    swap = begun(specs)
    for rank in range(3):
        specs.holds(rank, spec_hash(OLD), 2.0)
        assert states(swap)[rank] == "waiting"
        specs.holds(rank, DIGEST, 2.0)
    assert swap.phase == "draining"
    specs.holds(0, DIGEST, 3.0)
    assert states(swap) == ["prepared"] * 3
    specs.drained(4.0)
    specs.holds(0, DIGEST, 5.0)
    assert states(swap) == ["loaded", "prepared", "prepared"]


def test_a_rank_that_lacks_what_is_in_force_gets_that_first() -> None:
    specs, old = serving(), spec_hash(OLD)
    swap = begun(specs)
    assert specs.lacks(0, "")
    assert specs.lacks(0, DIGEST)
    assert not specs.lacks(0, old)
    assert not specs.lacks(2, "")  # it has no part
    order = specs.order(0, lacking=True)
    assert order is not None
    assert (order.served.spec, order.load, order.in_force) == (OLD, True, True)
    for rank in range(3):
        specs.prepared(rank, DIGEST, 3.0)
    assert swap.phase == "draining"
    assert specs.order(0, lacking=True) == order
    specs.drained(4.0)
    order = specs.order(0, lacking=True)
    assert order is not None
    assert order.served.spec == NEW


def test_without_one_in_force_nothing_is_drained_and_nothing_waits() -> None:
    specs = Specs(STALL_S)
    swap = prepared(specs)
    assert (swap.phase, specs.requests_wait) == ("loading", False)
    specs.rank_failed(0, DIGEST, "no memory", 5.0)
    assert specs.to_form is None
    assert specs.order(0) is None
    assert not specs.requests_wait


def test_who_is_not_heard_of_is_not_waited_for() -> None:
    specs = serving()
    swap = begun(specs)
    specs.told(0, DIGEST, 2.0)
    specs.told(1, DIGEST, 2.0)
    for now in range(3, 300):
        specs.progress(0, DIGEST, now, 1000, float(now))
        specs.look(float(now))
        if not swap.running:
            break
    assert now == pytest.approx(102, abs=1)
    assert swap.reason == "rank 2 has not joined for 100 s"


def test_who_has_what_is_in_force_first_is_waited_for() -> None:
    """All processes were started anew just before: that load may take longer than a stall."""
    specs, old = serving(), spec_hash(OLD)
    swap = begun(specs)
    specs.told(2, DIGEST, 2.0)
    specs.prepared(2, DIGEST, 3.0)
    for rank in range(2):
        specs.told(rank, old, 2.0)
        specs.progress(rank, old, 10, 20, 3.0)
    assert states(swap) == ["waiting", "waiting", "prepared"]
    assert [item.fetched_bytes for item in swap.ranks] == [10, 10, 0]
    specs.look(500.0)
    for rank in range(2):
        specs.loaded(rank, old, 500.0)
    specs.look(599.0)
    assert swap.running
    assert [item.fetched_bytes for item in swap.ranks] == [0, 0, 0]
    specs.look(601.0)
    assert swap.reason == "rank 0 has not joined for 100 s"


def test_a_rank_that_dies_of_what_is_in_force_is_not_waited_for_without_end() -> None:
    specs, old = serving(), spec_hash(OLD)
    swap = begun(specs)
    for rank in (1, 2):
        specs.told(rank, DIGEST, 2.0)
        specs.prepared(rank, DIGEST, 2.0)
    for now in range(3, 300):
        specs.rank_joined(0, same_process=False, now=float(now))
        specs.told(0, old, float(now))
        specs.look(float(now))
        specs.rank_lost(0, "killed", now + 0.5)
        if not swap.running:
            break
    assert now == pytest.approx(103, abs=1)


def test_a_load_has_a_limit_where_one_is_given() -> None:
    specs = serving()
    spec = replace(NEW, load_timeout_s=10.0)
    swap = prepared(specs, spec)
    specs.drained(4.0)
    for rank in range(3):
        specs.told(rank, swap.spec_hash, 5.0)
    specs.look(14.0)
    assert swap.running
    specs.look(16.0)
    assert swap.reason == "rank 0 took longer than load_timeout_s, 10 s"


def test_what_changes_is_told() -> None:
    assert what_changes(OLD, NEW) == "model changed from old to new"
    assert what_changes(OLD, replace(OLD, max_model_len=5, dtype="float16")) == (
        "dtype, max_model_len changed"
    )


def test_requests_go_on_where_the_model_is_the_same() -> None:
    specs = serving()
    swap = specs.push(replace(OLD, max_model_len=5), 0.0)
    assert swap is not None
    specs.commit_known(swap, "commit of old", 1.0)
    assert specs.keeps_the_model
    specs = serving()
    begun(specs)
    assert not specs.keeps_the_model


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_heard_one_of_the_two_is_served_and_it_comes_to_an_end(seed: int) -> None:
    """Events in any order, late ones and those of other specs among them."""
    chance = random.Random(seed)
    specs, now = serving(), 0.0
    old = specs.in_force
    assert old is not None
    known = {spec_hash(spec) for spec in (OLD, NEW)}
    for _ in range(300):
        now += chance.uniform(0, 5)
        rank, digest = chance.randrange(4), chance.choice([DIGEST, spec_hash(OLD), "f" * 64])
        event = chance.randrange(13)
        before, swap = specs.in_force, specs.running
        touched = swap is not None and swap.phase == "loading"
        if event == 0:
            try:
                specs.push(chance.choice([OLD, NEW]), now)
            except SwapRunning:
                assert specs.running is swap
            except NotServing:
                assert specs.returning
        elif event == 1 and specs.swap is not None:
            specs.commit_known(specs.swap, f"commit of {specs.swap.spec.model_name}", now)
        elif event == 2:
            specs.told(rank, digest, now)
        elif event == 3:
            specs.progress(rank, digest, chance.randrange(9), 9, now)
        elif event in (4, 5, 6):
            specs.prepared(rank, digest, now)
        elif event == 7:
            specs.loaded(rank, digest, now)
        elif event == 8 and chance.random() < 0.2:
            specs.rank_failed(rank, digest, "why", now)
            specs.rank_lost(rank, "gone", now)
        elif event == 8:
            specs.rank_joined(rank, same_process=chance.random() < 0.5, now=now)
        elif event == 9:
            specs.drained(now)
        elif event == 10:
            specs.answered(now)
        elif event == 11:
            specs.formed()
        elif event == 12:
            specs.holds(rank, digest, now)
        specs.look(now)
        assert specs.in_force is not None
        assert specs.in_force.spec_hash in known
        assert specs.to_form is not None
        # Only an answer of the new weights puts them in force, or a push of the same ones.
        if specs.in_force is not before:
            assert (touched and event == 10) or event == 0
        orders = [order for rank in range(4) if (order := specs.order(rank)) is not None]
        loads = {order.served.spec_hash for order in orders if order.load}
        assert len(loads) <= 1, "weights of two specs at once"
        if loads:
            assert loads == {specs.to_form.spec_hash}
        if not (specs.requests_wait or specs.running):
            assert specs.to_form is specs.in_force
    for _ in range(100):
        now += STALL_S
        if specs.swap is not None:
            specs.commit_known(specs.swap, "found in the end", now)
        specs.drained(now)
        specs.look(now)
        assert specs.to_form is not None
        specs.not_answered(specs.to_form, "nothing", now)
        specs.formed()
    assert specs.running is None
    assert not specs.requests_wait
