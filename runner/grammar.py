"""What an answer is held to, as the last stage's library reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from contract.faults import MISSING
from runner.errors import InvalidField

# Of a grammar's text as JSON has it, with all that comes before what is asked for.
MAX_GRAMMAR_BYTES = 256 * 1024


def bounded(text: str, field: str) -> str:
    """The text; raises InvalidField for one that is larger than what is judged and travels."""
    if len(text) > MAX_GRAMMAR_BYTES:
        rule = f"must be at most {MAX_GRAMMAR_BYTES:,}: make it smaller"
        raise InvalidField(field, f"{len(text)} characters", rule)
    return text


class GrammarFault(IntEnum):
    """Why the last stage cannot go on with a request that has a grammar."""

    UNBUILT = 1  # the library does not take it with this model's tokenizer
    NOT_FOLLOWED = 2  # ids that were delivered before are not of it
    TOO_COMPLEX = 3  # what may come next is not found within the library's limits
    DEAD_END = 4  # no token goes on, and it may not end here


_SAID = {
    GrammarFault.UNBUILT: "cannot be served with this model's tokenizer: ask without it",
    GrammarFault.NOT_FOLLOWED: "is not what the ids in carry follow: ask again without carry",
    GrammarFault.TOO_COMPLEX: "is too complex: what may come next takes too long to find; make it"
    " simpler, with smaller bounds and fewer alternatives",
    GrammarFault.DEAD_END: "cannot be written on with this model's tokens: make it wider",
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """`text` is in llguidance's form, checked: {"grammars": [...]}. `field` of the request asks for
    it; it stays with the master, for what is said of it."""

    text: str
    field: str

    @classmethod
    def of(cls, parts: Sequence[Mapping[str, Any]], field: str) -> Grammar:
        """`parts` are llguidance's grammars, each a json_schema or a lark_grammar, the first of
        which is what is followed. Raises InvalidField where it is larger than what travels."""
        return cls(bounded(json.dumps({"grammars": parts}), field), field)

    def after(self, beginning: str) -> Grammar:
        """With what comes before it: rules of Lark whose `start` ends with @content; as `of`."""
        [content] = json.loads(self.text)["grammars"]
        return self.of([{"lark_grammar": beginning}, {**content, "name": "content"}], self.field)

    def refusal(self, fault: GrammarFault, tokens: int) -> InvalidField:
        """What ends a request after so many `tokens`."""
        return InvalidField(self.field, MISSING, f"{_SAID[fault]} (after {tokens} tokens)")
