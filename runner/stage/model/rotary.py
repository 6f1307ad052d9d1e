"""Rotary factors that depend on how long a text is (longrope), for texts of both kinds together.

transformers picks the factors for a whole forward by its largest position. Here each request of a
step gets those of its own total length, as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from runner.errors import UnsupportedModel
from runner.stage.model.checkpoint import rope_types
from runner.steps import Segment


class LengthClasses:
    """Wraps a model's rotary embeddings; `rows` set before each forward says which are long."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        self.boundary = _boundary(config)
        self._long: torch.Tensor | None = None
        self._all_long = False
        if self.boundary is None:
            return
        modules = [module for module in model.modules() if hasattr(module, "original_inv_freq")]
        if not modules:
            raise UnsupportedModel(f"model_type {config.model_type}: longrope without its module")
        for module in modules:
            module.forward = self._wrap(module.forward)

    def begin(self, segments: Sequence[Segment]) -> None:
        """Sort the rows of the coming forward into the two classes."""
        if self.boundary is None:
            return
        long = [segment.total > self.boundary for segment in segments]
        self._all_long = all(long)
        self._long = None
        if any(long) and not self._all_long:
            pairs = zip(long, segments, strict=True)
            self._long = torch.tensor([one for one, item in pairs for _ in range(item.length)])

    def _wrap(self, forward: Any) -> Any:
        def wrapped(
            hidden: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            def factors(beyond: bool) -> Any:
                if not beyond:
                    # A row of another class may lie beyond the boundary; its factors are dropped.
                    return forward(hidden, position_ids.clamp(max=limit - 1), *args, **kwargs)
                # One more position, beyond the boundary, makes the forward a long one.
                more = nn.functional.pad(position_ids, (0, 1), value=limit)
                return tuple(part[:, :-1] for part in forward(hidden, more, *args, **kwargs))

            assert self.boundary is not None
            limit = self.boundary
            if self._long is None:
                return factors(self._all_long)
            choice = self._long.to(hidden.device)[None, :, None]
            pairs = zip(factors(True), factors(False), strict=True)
            return tuple(torch.where(choice, long, short) for long, short in pairs)

        return wrapped


def _boundary(config: Any) -> int | None:
    """The total length above which the long factors hold, for models that have them."""
    text = config.get_text_config()
    if "longrope" not in rope_types(text):
        return None
    parameters = text.rope_parameters
    if "original_max_position_embeddings" not in parameters:
        raise UnsupportedModel(f"model_type {config.model_type}: longrope per kind of layer")
    return int(parameters["original_max_position_embeddings"])
