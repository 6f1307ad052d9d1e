"""Fused expert weights of mixture-of-experts models, one packed matrix per expert (CPU only)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from runner.stage.cpu.packed_matrix import PackedMatrix

IMPLEMENTATION = "splitstack_packed"
_PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")


def pack_experts(model: nn.Module) -> int:
    """Pack the experts of every module that takes transformers' experts interface; bytes packed.

    The fused weight [experts, out, in] is split, packed and dropped projection by projection.
    """
    packed = 0
    for module in model.modules():
        if _takes_interface(module):
            packed += _pack_module(module)
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


def _pack_module(module: Any) -> int:
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
    module.config._experts_implementation = IMPLEMENTATION
    return sum(matrix.bytes_packed for group in matrices.values() for matrix in group)


def packed_experts_forward(
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
            results[start : start + count] = _run(self, expert, chosen[start : start + count])
            start += count
    weighted = torch.zeros_like(results)
    weighted[order] = results
    weighted *= top_k_weights.reshape(-1, 1)
    summed = weighted.view(-1, choices, hidden_states.shape[-1]).sum(dim=1)
    return summed.to(hidden_states.dtype)


def _run(module: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
    first = "gate_up_proj" if module.has_gate else "up_proj"
    wide = _project(module, first, expert, rows)
    wide = module._apply_gate(wide) if module.has_gate else module.act_fn(wide)
    result = _project(module, "down_proj", expert, wide)
    return module.post_expert_norm(result) if module.has_post_expert_norm else result


def _project(module: Any, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    matrix: PackedMatrix = module.packed_matrices[name][expert]
    return matrix.apply(rows, bias)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, packed_experts_forward)
