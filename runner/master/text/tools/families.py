"""The forms in which models write calls, and which one a chat template speaks of. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenizers import Tokenizer


@dataclass(frozen=True)
class Family:
    """How the models of one family write a call.

    A call begins with one of `openings`, where it has any. Behind it stands an object with `name`
    and `arguments` (some say `parameters`), or a list of them; with `is_named` also the name itself
    and an object of arguments, with `separators` between. `closing` ends one; "" where nothing
    does. `is_bare`: an answer may be the object, without an opening. `arguments` is the key that
    the family's own templates ask for. With `short_ids` ids of calls are nine letters and digits,
    which the family's templates insist on. `says` and `says_not` are what its templates name and do
    not.
    """

    name: str
    openings: tuple[str, ...]
    says: tuple[str, ...]
    closing: str = ""
    arguments: str = "arguments"
    separators: tuple[str, ...] = ()
    is_named: bool = False
    is_bare: bool = False
    short_ids: bool = False
    says_not: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts of its own that are not JSON."""
        closing = (self.closing,) if self.closing else ()
        return (*self.openings, *closing, *self.separators)


MISTRAL = Family(
    "mistral",
    openings=("[TOOL_CALLS]",),
    says=("[TOOL_CALLS]",),
    separators=("[CALL_ID]", "[ARGS]"),
    is_named=True,
    short_ids=True,
)
GRANITE = Family("granite", openings=("<|tool_call|>", "<tool_call>"), says=("<|tool_call|>",))
# Hermes 2 and 3, Qwen 2.5 and 3, SmolLM3, Granite 4. Others put no JSON between the same tags.
HERMES = Family(
    "hermes",
    openings=("<tool_call>",),
    closing="</tool_call>",
    says=("<tool_call>", "arguments"),
    says_not=("<function=", "<arg_key>", "<parameter="),
)
LLAMA = Family(
    "llama",
    openings=("<|python_tag|>",),
    says=("<|start_header_id|>", "parameters"),
    arguments="parameters",
    is_bare=True,
)
# A call is a message to a function, between special tokens: reasoning.py takes it apart.
HARMONY = Family("harmony", openings=(), says=("<|channel|>", "functions."))
# In this order: the first whose words a template has.
FAMILIES = (HARMONY, MISTRAL, GRANITE, HERMES, LLAMA)


def family_of(template: str) -> Family | None:
    """The family that this chat template's text speaks of; None where it is none of FAMILIES."""
    for family in FAMILIES:
        names = all(word in template for word in family.says)
        if names and not any(word in template for word in family.says_not):
            return family
    return None


@dataclass(frozen=True)
class CallForm:
    """One model's: the family, and those of its markers that are special tokens, by id.

    They give no text, so that an answer tells their places instead.
    """

    family: Family
    special: Mapping[int, str] = field(default_factory=dict)

    @property
    def marks(self) -> frozenset[int]:
        return frozenset(self.special)

    @classmethod
    def found(cls, template: str, tokenizer: Tokenizer) -> CallForm | None:
        family = family_of(template)
        if family is None:
            return None
        special = {
            token_id: token.content
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content in family.markers
        }
        return cls(family, special)
