"""What is wrong with a document, said once."""

from __future__ import annotations

import pytest

from web.body import MAX_KEYS, Fields, parse
from web.errors import ApiError


class Point(Fields):
    x: int = 0


class Line(Fields):
    start: Point


def test_every_fault_up_to_five_is_named() -> None:
    with pytest.raises(ApiError, match=r"start\.x = 'one'.*; y = 1: is not a field") as refused:
        parse(Line, {"start": {"x": "one"}, "y": 1})
    assert refused.value.body["error"]["param"] == "start.x"


@pytest.mark.parametrize("path", ["the body", "start"])
def test_a_million_unknown_fields_are_one_fault(path: str) -> None:
    many = dict.fromkeys(map(str, range(100_000)), 1)
    document = many if path == "the body" else {"start": many}
    with pytest.raises(ApiError, match=f"^{path} = .*at most {MAX_KEYS}") as refused:
        parse(Line, document)
    assert ";" not in str(refused.value)
