"""A block's generation parameters, by the rules of the block protocol.

proxy_block/component.json has the same rules for requests; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from infra.stack import types
from infra.stack.section import Section

# The bounds go before the check for booleans, so that the schema shows them.
_Share = Annotated[float, Field(ge=0, le=1), types.NO_BOOLEAN]


class GenerationConfig(Section):
    """What is left out is the model's own."""

    max_new_tokens: Annotated[int, Field(ge=1, le=36000), types.NO_BOOLEAN] | None = None
    """Length of an answer at most, in tokens."""
    do_sample: bool | None = None
    """false takes the most probable token each time."""
    temperature: Annotated[float, Field(ge=0, le=2), types.NO_BOOLEAN] | None = None
    """Above 1 answers vary more, below 1 less; 0 is do_sample false."""
    top_k: Annotated[int, Field(ge=1, le=1000), types.NO_BOOLEAN] | None = None
    """Only the so many most probable tokens."""
    top_p: _Share | None = None
    """Only the most probable tokens that make up this probability."""
    min_p: _Share | None = None
    """Only tokens at least so probable, as a share of the most probable one."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10), types.NO_BOOLEAN] | None = None
    """Above 1 makes tokens that were there before less probable."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1), types.NO_BOOLEAN] | None = None
    """Equal seeds give equal answers."""
    stop: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=16)]
        | None
    ) = None
    """Texts at which an answer ends."""
