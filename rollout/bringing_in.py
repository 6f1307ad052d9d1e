"""A spec handed over, and its swap followed to its end."""

from __future__ import annotations

import time
from collections.abc import Callable

from contract.specs import GroupSpec, spec_hash
from rollout.errors import NotNow, RolloutFailed
from rollout.group import Group
from rollout.stall import Stall
from rollout.swap import DRAINING, FAILED, GroupState, Swap

POLL_S = 0.5
# A master that forgets a spec as often ends each time that it is brought in.
MOST_HAND_OVERS = 5
# Where nothing is served nothing is lost by it: a stage that died meanwhile gets its next chance.
TRIES_OF_THE_FIRST = 3


def bring_in(group: Group, spec: GroupSpec, stall_s: float, say: Callable[[str], None]) -> None:
    """Ends when `spec` serves. Raises RolloutFailed with the reason.

    It is handed over again when the master has forgotten it: that one was restarted.
    """
    stall, failures = Stall(stall_s), 0
    for _ in range(MOST_HAND_OVERS):
        if _handed_over(group, spec, stall, say):
            return
        state = _ended(group, spec, stall, say)
        if state.serves(spec_hash(spec)):
            return
        if swap := state.swap_to(spec_hash(spec)):
            failures += 1
            why = f"{swap.model_name}: {swap.why_failed}; {state.goes_on}"
            if state.serving is not None or failures == TRIES_OF_THE_FIRST:
                raise RolloutFailed(why)
            say(f"trying again: {why}")
    raise RolloutFailed(
        f"the master has forgotten the spec {MOST_HAND_OVERS} times: it ends while "
        f"{spec.model_name} is brought in, and its log says why"
    )


def _ended(group: Group, spec: GroupSpec, stall: Stall, say: Callable[[str], None]) -> GroupState:
    """Follows the swap until the spec serves, has failed, or is forgotten."""
    more_s = 0.0  # of a drain, though it is not heard of for a moment
    while True:
        try:
            state = group.state()
        except NotNow as reason:
            line = f"waiting: {reason}"
        else:
            swap = state.swap_to(spec_hash(spec))
            if state.serves(spec_hash(spec)) or swap is None or swap.phase == FAILED:
                return state
            line, more_s = swap.line, _drain_s(swap, spec)
            stall.note(state)
        say(line)
        _check(stall, line, more_s)
        time.sleep(POLL_S)


def still_serves(group: Group, spec: GroupSpec, stall_s: float, say: Callable[[str], None]) -> None:
    """Raises RolloutFailed where another spec has taken its place meanwhile."""
    stall = Stall(stall_s)
    while True:
        try:
            state = group.state()
        except NotNow as reason:
            line = f"waiting: {reason}"
        else:
            if state.serves(spec_hash(spec)):
                return
            if state.serving is not None:
                raise RolloutFailed(
                    f"{spec.model_name} was replaced while it was asked: {state.goes_on}"
                )
            line = "waiting: nothing serves at the moment"
        say(line)
        _check(stall, line)
        time.sleep(POLL_S)


def _handed_over(group: Group, spec: GroupSpec, stall: Stall, say: Callable[[str], None]) -> bool:
    """Whether it is in force already; waits for a master that cannot take it now."""
    while True:
        try:
            return group.hand_over(spec)
        except NotNow as reason:
            line = f"waiting: {reason}"
        say(line)
        _check(stall, line)
        time.sleep(POLL_S)


def _drain_s(swap: Swap, spec: GroupSpec) -> float:
    """Requests that run may take their own time, in which nothing moves."""
    limit_s = spec.request_deadline_s if spec.swap_drain_s is None else spec.swap_drain_s
    return limit_s if swap.phase == DRAINING else 0.0


def _check(stall: Stall, line: str, more_s: float = 0.0) -> None:
    if stall.is_over(more_s):
        raise RolloutFailed(f"nothing has moved for {stall.limit_s + more_s:g} s: {line}")
