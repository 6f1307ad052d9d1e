"""The calls of torch's flash kernel, with a kernel for CPUs behind the same operator: what its
arguments mean, written down a second time. No GPU has computed any of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from runner.stage.model.attention_kind import AttentionKind, attention_kind
from runner.stage.model.flash_attention import flash_attention
from tests.runner.stage.model.random_company import RandomCompany, packed_step

OPERATOR = "_flash_attention_forward"
CALLS: list[tuple[int, bool, int]] = []  # max_q, is_causal, window_size_left


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor,
    cum_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: torch.Tensor | None = None,
    alibi_slopes: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """In float64. Refuses what the compiled one refuses, and what would not be ours."""
    assert seqused_k is not None
    assert window_size_left is not None
    assert window_size_right is not None
    assert (alibi_slopes, block_table, num_splits) == (None, None, None)
    assert not dropout_p
    assert not return_debug_mask
    count = len(seqused_k)
    for numbers, length in ((cum_seq_q, count + 1), (cum_seq_k, count + 1), (seqused_k, count)):
        assert numbers.dtype == torch.int32
        assert numbers.shape == (length,)
        assert numbers.is_contiguous()
    for tensor in (query, key, value):
        assert tensor.stride(-1) == 1
        assert tensor.shape[-1] == query.shape[-1]
    heads = query.shape[1]
    CALLS.append((max_q, is_causal, window_size_left))
    result = torch.empty_like(query)
    sums = torch.empty(heads, len(query))
    for index, used in enumerate(seqused_k.tolist()):
        first, end = cum_seq_q[index : index + 2].tolist()
        place, length = int(cum_seq_k[index]), end - first
        assert 0 < length <= max_q
        assert length <= used <= max_k
        keys, values = (
            tensor[place : place + used].double().repeat_interleave(heads // tensor.shape[1], dim=1)
            for tensor in (key, value)
        )
        rows = query[first:end].double().transpose(0, 1)
        scores = rows @ keys.permute(1, 2, 0) * (scale or query.shape[-1] ** -0.5)
        # Row and key at the lower right belong to one another.
        distance = torch.arange(used)[None] - torch.arange(used - length, used)[:, None]
        if is_causal or window_size_right >= 0:
            scores.masked_fill_(distance > max(0, window_size_right), float("-inf"))
        if window_size_left >= 0:
            scores.masked_fill_(distance < -window_size_left, float("-inf"))
        result[first:end] = (scores.softmax(-1) @ values.transpose(0, 1)).transpose(0, 1)
        sums[:, first:end] = scores.logsumexp(-1)
    nothing = torch.empty(0)
    return result, sums, nothing, nothing, nothing


@pytest.fixture
def kernel_for_cpus() -> Iterator[None]:
    CALLS.clear()
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl(OPERATOR, kernel, "CPU")
        yield


@pytest.mark.usefixtures("kernel_for_cpus")
def test_it_is_asked_for_what_each_request_sees() -> None:
    """Prompts, chunks, rows one by one, windows, sinks, over a poisoned pool that moves its slots;
    whatever hangs on one row a request is in steps of their own too."""
    for longest_chunk, count in ((12, 100), (1, 100)):
        company = RandomCompany(seed=longest_chunk, longest_chunk=longest_chunk)
        with torch.inference_mode():
            for batch, layers in company.steps(count):
                step = packed_step(company.pool, batch)
                for layer in layers:
                    keys, values = company.pool.layers[layer.index]
                    keys.index_copy_(1, step.slots, layer.key[0])
                    values.index_copy_(1, step.slots, layer.value[0])
                    if layer.rule.softcap or keys.shape != values.shape:
                        continue
                    found = flash_attention(layer.query[0], keys, values, step, layer.rule)
                    torch.testing.assert_close(found, layer.expected, rtol=1e-5, atol=1e-5)
    ones = {(causal, left) for rows, causal, left in CALLS if rows == 1}
    assert ones == {(False, -1)}, "the kernel's way for one row takes no mask"
    assert {(causal, left) for rows, causal, left in CALLS if rows > 1} == {(True, -1), (False, 4)}


def test_the_operator_takes_what_is_used_of_keys() -> None:
    arguments = torch.ops.aten._flash_attention_forward.default._schema.arguments
    names = {argument.name for argument in arguments}
    assert {"cum_seq_q", "cum_seq_k", "seqused_k", "window_size_left"} <= names


@pytest.mark.parametrize(
    ("capability", "dtype", "sizes", "softcap", "flash"),
    [
        ((9, 0), torch.bfloat16, (128, 128), None, True),
        ((8, 0), torch.float16, (256, 256), None, True),
        ((12, 1), torch.bfloat16, (64, 64), None, True),
        (None, torch.bfloat16, (128, 128), None, False),
        ((7, 5), torch.float16, (128, 128), None, False),
        ((9, 0), torch.float32, (128, 128), None, False),
        ((9, 0), torch.bfloat16, (192, 128), None, False),
        ((9, 0), torch.bfloat16, (512, 512), None, False),
        ((9, 0), torch.bfloat16, (100, 100), None, False),
        ((9, 0), torch.bfloat16, (128, 128), 30.0, False),
    ],
)
def test_the_kernel_is_chosen_where_it_can_do_it(
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    sizes: tuple[int, int],
    softcap: float | None,
    flash: bool,
) -> None:
    kind = attention_kind(capability, dtype, *sizes, softcap)
    assert kind is (AttentionKind.FLASH if flash else AttentionKind.BY_REQUEST)
