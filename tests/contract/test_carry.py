import pytest

from contract import carry
from contract.carry import Advance, Beginning, Carry, CarryError

BEGINNING = Beginning("chatcmpl-5", 1_790_000_000, 7, "0123abcd", "feed", 2)


@pytest.mark.parametrize("told", [BEGINNING, Advance(1, (5, 6)), Advance(0, ())])
def test_line_is_a_comment_that_says_it_all(told: carry.Told) -> None:
    line = carry.line(told)
    assert line.startswith(b":")
    assert line.endswith(b"\n\n")
    assert line.count(b"\n") == 2
    assert carry.parse_line(line) == told


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"index":0,"ids":["a"]}', b'{"index":0}', b"[1]", b'{"id":']
)
def test_line_of_another_service_is_refused(content: bytes) -> None:
    with pytest.raises(CarryError):
        carry.parse_line(carry.LINE + content + b"\n\n")


def test_field_comes_back() -> None:
    given = Carry(BEGINNING, ((1, 2), ()), fruitless=2)
    assert carry.parse_field(carry.field(given)) == given


def _field(**changes: object) -> dict[str, object]:
    return {**carry.field(Carry(BEGINNING, ((1,), (2,)))), **changes}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([], "carry"),
        ({}, "carry.beginning"),
        (_field(ids=[[1]]), "carry.ids"),
        (_field(ids=[[1], ["a"] * 500_000]), "carry.ids[1][0]"),
        (_field(ids=[[1], [True]]), "carry.ids[1][0]"),
        (_field(fruitless="2"), "carry.fruitless"),
        (_field(more=1), "carry.more"),
    ],
)
def test_wrong_field_is_refused_by_the_part(value: object, named: str) -> None:
    with pytest.raises(CarryError) as refused:
        carry.parse_field(value)
    assert refused.value.fault.path == named
