"""What clients send and a tier has no work for: the values that pass, and why others do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from web.errors import invalid_field

NOT_SUPPORTED = "not_supported"


class Unserved(NamedTuple):
    """One field. `nothing` are the values that ask for nothing here; with `anything` every one.

    `why` is the rule that a refusal gives, or why nothing depends on the field; None where the
    other values are served.
    """

    why: str | None
    nothing: tuple[object, ...] = ()
    anything: bool = False

    def asks_nothing(self, value: object) -> bool:
        """true and false are no numbers: 0 log probabilities are not none."""
        if value is None or self.anything:
            return True
        is_switch = isinstance(value, bool)
        return any(value == one and is_switch == isinstance(one, bool) for one in self.nothing)


Table: TypeAlias = Mapping[str, Unserved]


def served_fields(document: Mapping[str, Any], table: Table, under: str = "") -> dict[str, Any]:
    """`document` without the fields of `table`; raises ApiError 400 for what asks for something.

    `under` is its path in the request.
    """
    for name, row in table.items():
        if name in document and not row.asks_nothing(document[name]):
            path = f"{under}.{name}" if under else name
            raise invalid_field(path, row.why or "", document[name], NOT_SUPPORTED)
    return {name: value for name, value in document.items() if name not in table}
