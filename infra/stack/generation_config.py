"""A block's generation parameters, by the rules of the block protocol."""

from __future__ import annotations

from contract.generation import BlockGeneration
from infra.stack.types import Section


class GenerationConfig(Section, BlockGeneration):
    """What is left out is the model's own."""
