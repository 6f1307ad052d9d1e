"""The plan as a table for people and as JSON for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from infra.plan.edits import Change, edit_lines
from infra.plan.kv_room import KVRoom
from infra.plan.layers import RankPlan
from infra.plan.stack_plan import StackPlan
from infra.plan.table import byte_size, table_lines
from infra.stack.config import RankParams

WIDTH = 96
_HEADINGS = (
    "rank", "node", "devices", "layers", "weight bytes", "KV bytes", "KV tokens", "step share"
)  # fmt: skip
_NUMBERS = range(4, len(_HEADINGS))


def render_plan(plan: StackPlan) -> str:
    """The table with a line about the model above and the notes below; no trailing newline."""
    rows = [_HEADINGS, *(_row(plan, rank) for rank in range(len(plan.ranks)))]
    model = f"{plan.model_name} ({plan.model_type or 'shape not known'}, {plan.dtype})"
    ranks = "1 rank" if len(plan.ranks) == 1 else f"{len(plan.ranks)} ranks"
    longest = f", up to {plan.max_model_len:,} tokens a request" if plan.max_model_len else ""
    lines = [f"{plan.deployment_name}: {model} over {ranks}{longest}", ""]
    lines += table_lines(rows, right=_NUMBERS)
    if plan.kv_room is not None:
        lines += ["", *_room_lines(plan, plan.kv_room)]
    for note in plan.notes:
        lines += ["", *_wrapped(f"note: {note}")]
    return "\n".join(lines)


def render_edit(changes: Sequence[Change], ranks: int) -> str:
    """What each kind of change means, below one another; no trailing newline."""
    lines = [line for change in edit_lines(changes, ranks) for line in _wrapped(change)]
    return "\n".join(["this edit:", *(f"  {line}" for line in lines)])


def plan_to_json(plan: StackPlan) -> dict[str, Any]:
    """What the table says, unrounded: sizes in bytes, layers inclusive, null where not known."""
    room = plan.kv_room
    return {
        "deployment_name": plan.deployment_name,
        "model_name": plan.model_name,
        "model_type": plan.model_type or None,
        "commit": plan.commit or None,
        "dtype": plan.dtype,
        "max_model_len": plan.max_model_len,
        "gpu_pinning": plan.gpu_pinning,
        "memory_checked": plan.memory_checked,
        "kv_estimated": plan.kv_estimated,
        "kv_tokens": None if room is None else room.tokens,
        "requests_that_fit": [
            {"tokens": tokens, "requests": requests}
            for requests, tokens in (() if room is None else room.requests)
        ],
        "ranks": [
            {
                "rank": rank.rank,
                "node": params.node_id or None,
                "devices": devices_label(plan, params),
                "layers": [rank.layers[0], rank.layers[1] - 1],
                "weight_bytes": rank.weight_bytes,
                "kv_bytes_per_token": rank.kv_bytes_per_token,
                "kv_bytes": rank.kv_budget_bytes,
                "kv_tokens": rank.kv_budget_tokens,
                "step_share": rank.step_share,
            }
            for rank, params in zip(plan.ranks, plan.params, strict=True)
        ],
        "notes": list(plan.notes),
    }


def devices_label(plan: StackPlan, params: RankParams) -> str:
    """The one device of a rank, in words: "GPU 1", "cpu x2"."""
    if plan.gpu_pinning == "visible-devices":
        return f"GPU {params.physical_device}"
    if plan.gpu_pinning == "dra":
        return params.device_uuid
    if plan.gpu_pinning == "resource":
        return "1 GPU"
    return "cpu" if params.cpu is None else f"cpu x{params.cpu:g}"


def _row(plan: StackPlan, index: int) -> tuple[str, ...]:
    rank, params = plan.ranks[index], plan.params[index]
    return (
        str(rank.rank),
        params.node_id or "-",
        devices_label(plan, params),
        f"{rank.layers[0]}-{rank.layers[1] - 1}",
        byte_size(rank.weight_bytes),
        _kv_size(rank),
        "-" if rank.kv_budget_tokens is None else f"{rank.kv_budget_tokens:,}",
        "-" if rank.step_share is None else f"{rank.step_share:.1%}",
    )


def _room_lines(plan: StackPlan, room: KVRoom) -> list[str]:
    """What the smallest rank's KV cache means: every request is in every rank's."""
    said = [f"rank {room.rank} has the least"] if len(plan.ranks) > 1 else []
    if room.unknown:
        said = [f"on rank {room.rank}, not known of rank {', '.join(map(str, room.unknown))}"]
    if plan.kv_estimated:
        said.append("an estimate, see the notes")
    most = "at most " if room.unknown else ""
    (count, length), *longer = room.requests
    fitting = f"{count:,} of {length:,} tokens"
    fitting += "".join(f", or {count:,} of {length:,}" for count, length in longer)
    lines = [
        f"KV for {most}{room.tokens:,} tokens" + (f" ({'; '.join(said)})" if said else ""),
        f"  requests at once, prompt and answer: {most}{fitting}",
    ]
    limit = plan.max_concurrent_requests
    if any(count > limit for count, _ in room.requests):
        lines.append(
            f"  more than {limit} never run at once (common_params.max_concurrent_requests)"
        )
    return lines


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, subsequent_indent="      ", break_on_hyphens=False)


def _kv_size(rank: RankPlan) -> str:
    """The budget; where the memory is not known, what a token takes."""
    if rank.kv_budget_bytes is None and rank.kv_bytes_per_token is not None:
        return f"{byte_size(rank.kv_bytes_per_token)}/token"
    return byte_size(rank.kv_budget_bytes)
