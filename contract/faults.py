"""What is wrong with something that was given to us: path, value, rule.

The one place that words a complaint of pydantic's: a request, a spec, a stack file and a list of
API keys get the same sentence for the same mistake.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN_VALUE = 80
MISSING: Final = object()
Location: TypeAlias = tuple[int | str, ...]


class _Shorten(reprlib.Repr):
    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        """The first entries as they stand: reprlib would sort all of them."""
        return super().repr_dict(dict(islice(value.items(), self.maxdict + 1)), level)


_shorten = _Shorten()
_shorten.maxstring = _shorten.maxother = MAX_SHOWN_VALUE
_WITHOUT_VALUE = {"missing", "json_invalid"}
_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}  # of models, of dataclasses
# By pydantic's type of an error; what is not here is said in pydantic's own words.
_RULES = {
    "missing": "is required",
    "json_invalid": "is not JSON: {error}",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "too_short": "must have at least {min_length}",
    "too_long": "must have at most {max_length}",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


@dataclass(frozen=True)
class Fault:
    """One broken rule. `value` is MISSING where there is no value to show."""

    path: str
    value: object
    rule: str

    def __str__(self) -> str:
        if self.value is MISSING:
            return f"{self.path}: {self.rule}"
        return f"{self.path} = {shown_value(self.value)}: {self.rule}"


def shown_value(value: Any) -> str:
    """`value` as an error shows it: its repr, cut to MAX_SHOWN_VALUE characters.

    reprlib, because a body may hold megabytes or be nested as deep as the parser allows.
    """
    shown = _shorten.repr(value)
    return shown if len(shown) <= MAX_SHOWN_VALUE else shown[: MAX_SHOWN_VALUE - 3] + "..."


def path_of(location: Location, under: str = "") -> str:
    """`messages[0].content`: as a reader of the document would write it; "" for all of it.

    `under` is the path of the document in a larger one. Keys may be a client's own and of any
    length; of each, MAX_SHOWN_VALUE characters are shown.
    """
    path = under
    for item in location:
        if isinstance(item, int):
            path += f"[{item}]"
        else:
            path += f".{item[:MAX_SHOWN_VALUE]}" if path else item[:MAX_SHOWN_VALUE]
    return path


def faults_of(
    error: ValidationError,
    *,
    under: str = "",
    whole: str = "the body",
    unknown: Callable[[Location], str] = lambda _location: "is not a field of this request",
    most: int | None = None,
) -> list[Fault]:
    """The complaints of pydantic's as faults, in its order; `most` of them where they may be
    hundreds of thousands.

    `whole` names the document where a fault is of no field, `unknown` words a key that the model
    does not have.
    """
    return [
        Fault(
            path_of(_keys(details), under) or whole,
            MISSING if details["type"] in _WITHOUT_VALUE else details["input"],
            unknown(details["loc"]) if details["type"] in _UNKNOWN else _rule(details),
        )
        for details in error.errors(include_url=False)[:most]
    ]


def _keys(details: ErrorDetails) -> Location:
    """pydantic's place, without the mark that it puts behind a key which is itself at fault."""
    location = details["loc"]
    marked = location[-1:] == ("[key]",) and details["type"] not in _UNKNOWN
    return location[:-1] if marked else location


def _rule(details: ErrorDetails) -> str:
    if rule := _RULES.get(details["type"]):
        context = details.get("ctx", {}).items()
        # 1.0 is said as 1; whole numbers stay exact.
        plain = {name: f"{it:g}" if isinstance(it, float) else it for name, it in context}
        return rule.format(**plain)
    return details["msg"].replace("Input should be ", "must be ", 1)
