"""The one rule of a rank's memory: what holds of it for any numbers."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.memory import (
    PROCESS_BYTES,
    STEP_BYTES,
    MemoryShare,
    gpu_memory_bytes,
    host_memory_bytes,
    room_beside,
)
from tests.lanes import examples

GB = 10**9

amounts = st.integers(0, 200 * GB)
tokens = st.integers(1, 2**20)
shares = st.builds(
    MemoryShare,
    rank=st.integers(0, 7),
    layers=st.just((0, 4)),
    weight_bytes=st.integers(1, 100 * GB),
    kv_bytes_per_token=st.integers(1, 10**7),
    step_bytes=st.none() | st.integers(0, 20 * GB),
)
many = settings(max_examples=examples(300))


@many
@given(shares, amounts, amounts, tokens)
def test_more_memory_never_holds_less(
    share: MemoryShare, memory: int, more: int, count: int
) -> None:
    assert share.kv_tokens(memory + more) >= share.kv_tokens(memory)
    assert share.fits(memory + more, count) or not share.fits(memory, count)


@many
@given(shares, amounts, amounts, st.sampled_from(["weight_bytes", "kv_bytes_per_token"]))
def test_a_larger_share_never_leaves_more(
    share: MemoryShare, memory: int, more: int, field: str
) -> None:
    larger = dataclasses.replace(share, **{field: getattr(share, field) + more})
    assert larger.kv_tokens(memory) <= share.kv_tokens(memory)
    assert share.fits(memory) or not larger.fits(memory)


@many
@given(shares, amounts, tokens)
def test_what_fits_is_what_is_counted(share: MemoryShare, memory: int, count: int) -> None:
    """The plan asks the first way, a stage the second."""
    assert share.fits(memory, count) == (share.kv_tokens(memory) >= count)
    assert share.fits(share.needed_bytes(count), count)
    assert not share.fits(share.needed_bytes(count) - 1, count)


@many
@given(shares, st.integers(0, 20 * GB))
def test_a_measured_step_never_gives_more_than_was_planned(share: MemoryShare, step: int) -> None:
    planned = dataclasses.replace(share, step_bytes=None)
    measured = dataclasses.replace(share, step_bytes=step)
    assert planned.reserved_bytes == PROCESS_BYTES + STEP_BYTES
    assert measured.reserved_bytes == PROCESS_BYTES + max(STEP_BYTES, step)
    assert measured.kv_tokens(50 * GB) <= planned.kv_tokens(50 * GB)


def test_every_byte_is_given_out_once() -> None:
    share = MemoryShare(1, (4, 8), weight_bytes=3 * GB, kv_bytes_per_token=1000)
    assert share.kv_bytes(6 * GB) == 2 * GB
    assert share.kv_tokens(6 * GB) == 2_000_000
    assert share.kv_bytes(GB) == share.kv_tokens(GB) == 0


@many
@given(shares, amounts, st.integers(1, 200), tokens)
def test_what_lies_beside_leaves_the_requests_their_keys_and_values(
    share: MemoryShare, memory: int, requests: int, longest: int
) -> None:
    known, each = share.kv_tokens(memory), share.kv_bytes_per_token
    room = room_beside(known, each, requests=requests, longest=longest)
    assert 0 <= room <= share.kv_bytes(memory)
    if room:
        assert share.needed_bytes(requests * longest) + room <= memory


@pytest.mark.parametrize(("count", "told"), [(1, "one token"), (8192, "8,192 tokens")])
def test_a_refusal_says_who_wants_what_and_what_to_do(count: int, told: str) -> None:
    share = MemoryShare(2, (8, 16), weight_bytes=9 * GB, kv_bytes_per_token=1000)
    said = share.refusal(8 * GB, count)
    assert said.startswith("rank 2: layers 8-15 do not fit its memory: they need ")
    assert f"{10 * GB + 1000 * count:,} bytes and 8,000,000,000 are there" in said
    assert f"KV of {told}, 1,000,000,000 for the process" in said
    for way_out in ("memory", "device_memory", "nnodes", "max_model_len", "bfloat16"):
        assert way_out in said


def test_a_gpu_is_taken_as_far_as_is_declared_and_as_there_is() -> None:
    assert gpu_memory_bytes(24 * GB, mine=10 * GB, free=60 * GB) == 24 * GB
    assert gpu_memory_bytes(24 * GB, mine=10 * GB, free=4 * GB) == 14 * GB
    assert gpu_memory_bytes(None, mine=10 * GB, free=60 * GB) == 64 * GB


def test_a_host_without_a_limit_is_shared_by_its_ranks() -> None:
    assert host_memory_bytes(8 * GB, mine=5 * GB, free=GB, sharing=2) == 8 * GB
    assert host_memory_bytes(None, mine=5 * GB, free=12 * GB, sharing=2) == 8 * GB
