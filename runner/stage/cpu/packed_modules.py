"""Linear layers and experts of a loaded model through oneDNN's packed kernels, in place (CPU only).

Fused expert weights of mixture-of-experts models become one packed matrix per expert.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from contract.models import TIED_COPY_LIMIT_BYTES
from runner.stage.cpu.allocator import limit_kernel_caches
from runner.stage.cpu.packed_matrix import Layout, PackedMatrix, supported

_EXPERTS_IMPLEMENTATION = "splitstack_packed"
_PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
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
    packed = _pack_experts(model)
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


def _pack_experts(model: nn.Module) -> int:
    """Pack the experts of every module that takes transformers' experts interface; bytes packed.

    The fused weight [experts, out, in] is split, packed and dropped projection by projection.
    """
    packed = 0
    for module in model.modules():
        if _takes_interface(module):
            packed += _pack_expert_module(module)
    return packed


def _takes_interface(module: nn.Module) -> bool:
    """Made by `use_experts_implementation`, float32, on the CPU."""
    down = getattr(module, "down_proj", None)
    return (
        all(hasattr(module, name) for name in ("is_transposed", "has_gate", "_apply_gate"))
        and isinstance(down, nn.Parameter)
        and down.dim() == 3
        and down.dtype == torch.float32
        and down.device.type == "cpu"
    )


def _pack_expert_module(module: Any) -> int:
    matrices: dict[str, list[PackedMatrix]] = {}
    for name in _PROJECTIONS:
        fused = getattr(module, name, None)
        if not isinstance(fused, nn.Parameter):
            continue
        setattr(module, name, None)
        slices = fused.detach().transpose(1, 2) if module.is_transposed else fused.detach()
        matrices[name] = [PackedMatrix(matrix) for matrix in slices]
        del fused, slices
    module.packed_matrices = matrices
    module.config._experts_implementation = _EXPERTS_IMPLEMENTATION
    return sum(matrix.bytes_packed for group in matrices.values() for matrix in group)


def _experts_forward(
    self: Any,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """transformers' experts contract: hidden_states [tokens, hidden], the other two [tokens, k].

    Every chosen (token, expert) pair is computed, weighted, and summed in float32 in the order of
    the choices, so that a token's result does not depend on its company.
    """
    choices = top_k_index.shape[-1]
    experts = top_k_index.reshape(-1)
    order = torch.argsort(experts, stable=True)
    counts = torch.bincount(experts, minlength=self.num_experts).tolist()
    chosen = hidden_states[order // choices]
    results = torch.empty_like(chosen)
    start = 0
    for expert, count in enumerate(counts[: self.num_experts]):
        if count:
            rows = slice(start, start + count)
            results[rows] = _run_expert(self, expert, chosen[rows])
            start += count
    weighted = torch.zeros_like(results)
    weighted[order] = results
    weighted *= top_k_weights.reshape(-1, 1)
    summed = weighted.view(-1, choices, hidden_states.shape[-1]).sum(dim=1)
    return summed.to(hidden_states.dtype)


def _run_expert(module: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
    first = "gate_up_proj" if module.has_gate else "up_proj"
    wide = _project(module, first, expert, rows)
    wide = module._apply_gate(wide) if module.has_gate else module.act_fn(wide)
    result = _project(module, "down_proj", expert, wide)
    return module.post_expert_norm(result) if module.has_post_expert_norm else result


def _project(module: Any, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    matrix: PackedMatrix = module.packed_matrices[name][expert]
    return matrix.apply(rows, bias)


ALL_EXPERTS_FUNCTIONS.register(_EXPERTS_IMPLEMENTATION, _experts_forward)
