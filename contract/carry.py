"""What lets whoever holds a client's connection go on where a dead process stopped.

A caller asks with the header `X-Carry: ids`. The answer is then a stream of server-sent events in
every case, and comment lines between its events say what was delivered:

    : carry {"id": "chatcmpl-5", "created": 1790000000, "seed": 7, "model_commit": "...", ...}

    data: {the events of one piece of text, one or several}

    : carry {"index": 0, "ids": [31, 7]}

    data: [DONE]

The first line, a `Beginning`, comes with the admission. An `Advance` confirms the events since the
line before it: what none confirms counts as not delivered, and comes again. The events of the end
(usage, then [DONE]) are confirmed by [DONE]. An answer that is asked for whole is one event before
[DONE], its body; the lines before it have no events.

After a break the same body is sent again with a field `carry`, a `Carry`; the answer goes on after
the ids in it. A service that knows no ids ignores the header, and its streams have no such lines.

Whoever is asked again after a loss is told so with the header `X-Asked-Again`: of a session it may
take what the one before it had to itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from contract.faults import Fault, faults_of

HEADER = "X-Carry"
ASKS_FOR_IDS = "ids"
AGAIN_HEADER = "X-Asked-Again"
FIELD = "carry"
# So many carries in a row without a new id are the end; it is tried alone from ALONE_FROM on.
MOST_FRUITLESS = 3
ALONE_FROM = 2
LINE = b": carry "

# One wrong id is enough to say.
Ids: TypeAlias = Annotated[tuple[int, ...], Field(fail_fast=True)]


class CarryError(ValueError):
    """A line or a field that does not follow the contract; `fault` names what is wrong."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(str(fault))


class _Part:
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Beginning(_Part):
    """What has to be the same when the answer goes on.

    `id` and `created` (seconds) are the answer's own, `seed` the one that was asked for or drawn,
    `model_commit` the one whose ids these are, `prompt` a digest of the prompts' ids. `choices`
    counts those of all prompts.
    """

    id: str
    created: int
    seed: int
    model_commit: str
    prompt: str
    choices: int


@dataclass(frozen=True, slots=True)
class Advance(_Part):
    """The ids of choice `index` since its last one, an end's id among them."""

    index: int
    ids: Ids


@dataclass(frozen=True, slots=True)
class Carry(_Part):
    """The ids delivered of each choice, by index. `fruitless` counts the carries since the last
    one that brought a new id, this one among them."""

    beginning: Beginning
    ids: Annotated[tuple[Ids, ...], Field(fail_fast=True)]
    fruitless: int = 1


Told: TypeAlias = Beginning | Advance
_BEGINNING = TypeAdapter(Beginning)
_ADVANCE = TypeAdapter(Advance)
_CARRY = TypeAdapter(Carry)


def line(told: Told) -> bytes:
    """One comment, as an event of its own."""
    # One for each token of each stream: the adapter writes it in a fraction of json's time.
    content = _ADVANCE.dump_json(told) if isinstance(told, Advance) else _BEGINNING.dump_json(told)
    return LINE + content + b"\n\n"


def parse_line(comment: bytes) -> Told:
    """What `line` made, with or without its end; raises CarryError."""
    content = comment.removeprefix(LINE)
    adapter: TypeAdapter[Any] = _ADVANCE if content.startswith(b'{"index"') else _BEGINNING
    try:
        told: Told = adapter.validate_json(content)
    except ValidationError as error:
        raise CarryError(faults_of(error, whole="the line", most=1)[0]) from error
    return told


def parse_field(value: object) -> Carry:
    """A body's field `carry`, as JSON was read; raises CarryError."""
    try:
        # As JSON, in which a list may stand for a tuple.
        carry: Carry = _CARRY.validate_json(json.dumps(value))
    except ValidationError as error:
        raise CarryError(faults_of(error, under=FIELD, most=1)[0]) from error
    if len(carry.ids) != carry.beginning.choices:
        rule = f"must have {carry.beginning.choices} lists, one for each choice"
        raise CarryError(Fault(f"{FIELD}.ids", f"{len(carry.ids)} lists", rule))
    return carry


def field(carry: Carry) -> dict[str, Any]:
    """What `parse_field` reads."""
    return asdict(carry)
