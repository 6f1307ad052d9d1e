"""What an unknown name was meant for: the fields at its place, and the one that is near.

A name is near when somebody else's interface calls the same thing so, or when it is spelt almost
alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pydantic import BaseModel

from contract.faults import Location

_LONGEST = 64  # characters of a name that is compared; a client's own may be of megabytes
_ALIKE = 0.7
_CONFIG = ("generation_config",)
_LENGTH = ("max_new_tokens", "max_tokens", "max_completion_tokens")
_TEXT = ("message", "prompt", "messages")
_STOP = ("stop",)
# The names of other engines and of other components of AIOS, and what they are here. Of several
# the first that is a field at the place.
OTHER_NAMES = {
    "gen_params": _CONFIG,
    "gen_config": _CONFIG,
    "generation_params": _CONFIG,
    "generation_parameters": _CONFIG,
    "parameters": _CONFIG,
    "sampling_params": _CONFIG,
    "max_new_tokens": _LENGTH,
    "max_tokens": _LENGTH,
    "max_completion_tokens": _LENGTH,
    "max_length": _LENGTH,
    "max_output_tokens": _LENGTH,
    "n_predict": _LENGTH,
    "num_predict": _LENGTH,
    "input": _TEXT,
    "inputs": _TEXT,
    "message": _TEXT,
    "messages": _TEXT,
    "prompt": _TEXT,
    "query": _TEXT,
    "question": _TEXT,
    "text": _TEXT,
    "system": ("system_message",),
    "system_prompt": ("system_message",),
    "eos_token_id": ("stop_token_ids",),
    "stop_sequences": _STOP,
    "stop_strings": _STOP,
    "num_return_sequences": ("n",),
    "random_seed": ("seed",),
    "repeat_penalty": ("repetition_penalty",),
    "enable_streaming": ("stream",),
    "stream": ("enable_streaming",),
    "block_id": ("model",),
    "session": ("session_id",),
    "sequence_number": ("seq_no",),
    "query_selection": ("selection_query",),
}


def near(name: str, known: Collection[str]) -> str | None:
    """The one of `known` that was meant, None where none is near."""
    name = name[:_LONGEST]
    for meant in OTHER_NAMES.get(name, ()):
        if meant in known:
            return meant
    return next(iter(difflib.get_close_matches(name, known, 1, _ALIKE)), None)


def hint(name: str, known: Collection[str]) -> str:
    """What a refusal of `name` ends with; "" where nothing is near."""
    meant = near(name, known)
    return "" if meant is None else f"; did you mean {meant}?"


def unknown_field(model: type[BaseModel]) -> Callable[[Location], str]:
    """For `faults_of`: words a field that the model does not have."""

    def rule(location: Location) -> str:
        known = fields_at(model, location[:-1])
        return "is not a field of this request" + hint(str(location[-1]), known)

    return rule


def fields_at(model: type[BaseModel], place: Location) -> list[str]:
    """The fields of what lies at `place` in a document of `model`; empty where any key may be."""
    section: type[BaseModel] | None = model
    for part in place:
        if section is None:
            break
        if part in section.model_fields:
            section = next(_models_in(section.model_fields[str(part)].annotation), None)
        # else an index, or a name of the user's own
    return [] if section is None else list(section.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Also those in unions, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models_in(part)
