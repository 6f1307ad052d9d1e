"""Comments of a document that is changed: what stands below a list or mapping stays below it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import FoldedScalarString, LiteralScalarString
from ruamel.yaml.tokens import CommentToken


@contextmanager
def comment_below_kept(place: object, key: str | None = None) -> Iterator[None]:
    """Around a change of a mapping's end, or of what it has (or will have) under `key`.

    The reader hangs what comes before the next section on the last value of this one.
    """
    below = _taken(place, key)
    yield
    if below:
        _put(place, key, below)


def commented(value: object) -> Any:
    """A value of mappings and lists as one that can hold comments."""
    if isinstance(value, dict):
        return CommentedMap((key, commented(item)) for key, item in value.items())
    return CommentedSeq(map(commented, value)) if isinstance(value, list) else value


def _taken(place: object, key: str | None) -> str:
    """The lines below the last value, cut off; the comment beside it stays."""
    slots, at, value = _slots(place, key)
    token = slots[at] if slots else None
    if not isinstance(token, CommentToken):
        return ""
    # Nothing is beside a text of several lines.
    beside, _, below = ("", "", token.value) if _is_block(value) else token.value.partition("\n")
    slots[at] = CommentToken(f"{beside}\n", token.start_mark, None) if beside else None
    return " " * token.start_mark.column + below if below.startswith("#") else str(below)


def _put(place: object, key: str | None, below: str) -> None:
    slots, at, value = _slots(place, key)
    if slots:
        token = slots[at] or CommentToken("\n", CommentMark(0), None)
        beside = "" if _is_block(value) else token.value.partition("\n")[0] + "\n"
        slots[at] = CommentToken(beside + below, token.start_mark, None)


def _is_block(value: object) -> bool:
    return isinstance(value, LiteralScalarString | FoldedScalarString)


def _slots(place: object, key: str | None) -> tuple[list[Any], int, object]:
    """The comments of the last value, where among them is the one behind it, and the value."""
    slots: list[Any] = []
    at = 0
    while isinstance(place, CommentedMap | CommentedSeq) and place and not place.fa.flow_style():
        is_map = isinstance(place, CommentedMap)
        last = next(reversed(place)) if is_map else len(place) - 1
        within = key if key in place else last
        slots = place.ca.items.setdefault(within, [None] * 4)
        at, key, place = 2 if is_map else 0, None, place[within]
    return slots, at, place
