"""The keys of an object within a body: served, asking for nothing, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract.faults import path_of
from contract.near_names import hint
from runner.errors import InvalidField
from web.unserved import Table


def check_fields(
    field: str, document: Mapping[str, Any], served: Sequence[str], unserved: Table, unknown: str
) -> None:
    """Raises InvalidField for the first key that is neither served nor asks for nothing."""
    for name, value in document.items():
        if name in served:
            continue
        row = unserved.get(name)
        if row is None or not row.asks_nothing(value):
            rule = (row and row.why) or unknown + hint(name, served)
            raise InvalidField(path_of((name,), field), value, rule)
