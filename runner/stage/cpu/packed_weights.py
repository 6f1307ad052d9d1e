"""Linear layers of a loaded model through oneDNN's packed kernels, in place (CPU only)."""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from runner.stage.cpu.allocator import limit_kernel_caches
from runner.stage.cpu.packed_experts import pack_experts
from runner.stage.cpu.packed_matrix import Layout, PackedMatrix, supported

# A table that the embedding looks up too is packed as a second copy up to this size: half the
# time of a decode's head for 108 MiB in the demo model. Larger ones are used where they lie.
TIED_COPY_LIMIT_BYTES = 128 * 2**20

_PACKABLE = (torch.float32, torch.bfloat16, torch.float16)


class PackedLinear(nn.Linear):
    """An nn.Linear whose weight is a PackedMatrix. Made by pack_weights, never constructed."""

    matrix: PackedMatrix

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.matrix.apply(rows, self.bias)


class PackedConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's transposed linear layer, likewise."""

    matrix: PackedMatrix

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.matrix.apply(rows, self.bias)


def pack_weights(model: nn.Module) -> int:
    """Pack every linear layer and every fused expert of `model`; return the bytes packed.

    One matrix at a time, each original freed before the next, so that memory never doubles. Does
    nothing (0) off the CPU, where torch lacks the operators, or with SPLITSTACK_PACKED_WEIGHTS=0.
    Weights keep their dtype: 16-bit ones that the CPU cannot multiply are kept as they are and
    computed in float32.
    """
    if not supported():
        return 0
    limit_kernel_caches()
    users = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    packed = pack_experts(model)
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D) and _packable(cast(nn.Linear, module).weight):
            packed += _pack(cast(nn.Linear, module), users[id(module.weight)] > 1)
    return packed


def _packable(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _PACKABLE and weight.numel() > 0


def _pack(module: nn.Linear, tied: bool) -> int:
    linear = type(module) is nn.Linear
    dense = module.weight.detach() if linear else module.weight.detach().t()
    shared = tied and dense.numel() * dense.element_size() > TIED_COPY_LIMIT_BYTES
    matrix = PackedMatrix(dense, shared=shared, consumed=not tied)
    if matrix.layout is Layout.PACKED:
        # Takes the original's place, so that shape and dtype can still be asked for.
        module.weight = nn.Parameter(matrix.tensor, requires_grad=False)
    module.__class__ = PackedLinear if linear else PackedConv1D
    cast(PackedLinear, module).matrix = matrix
    return matrix.bytes_packed
