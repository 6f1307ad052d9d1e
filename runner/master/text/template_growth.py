"""How much a chat template makes: the size of a value, and an upper bound before it is made.

Sizes are about the characters of a value as text. Most operations make no more than they are given;
those that can are named here. None of these bounds is counted beyond `most`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from jinja2.utils import Namespace

# Filters and methods that make as much as a number among their arguments says,
_BY_A_NUMBER = frozenset({"ljust", "rjust", "center", "zfill", "to_bytes"})
# or make, or take time, as their subject times an argument,
_BY_A_PRODUCT = frozenset(
    {"expandtabs", "indent", "tojson", "slice", "batch", "wordwrap", "xmlattr", "translate"}
    | {"rfind", "rindex", "rsplit", "rpartition"}
)
# or take time as the square of their subject.
_BY_A_SQUARE = frozenset({"striptags", "urlize", "pprint"})
_ITEM = 8  # of a value beside its text, about what it takes in memory
_NUMBER = re.compile(r"\d+")
_WIDTH_IS_GIVEN = re.compile(r"%[^a-zA-Z%]*\*|\{[^}]*\{")
_TEXT = str | bytes
Given: TypeAlias = Collection[Any]


def size_of(value: Any, most: int) -> int:
    """Of the value with all that it holds, again where it holds it twice; what lies deeper counts
    more, as its text may be indented."""
    if isinstance(value, _TEXT):
        return len(value)
    size, left = 0, [(value, _ITEM)]
    while left and size <= most:
        item, depth = left.pop()
        size += depth
        if isinstance(item, _TEXT):
            size += len(item)
        elif isinstance(item, int):
            size += item.bit_length() // 3
        elif isinstance(item, Namespace):
            left.append((object.__getattribute__(item, "_Namespace__attrs"), depth))
        elif isinstance(item, Mapping):
            left += [(one, depth + 1) for pair in item.items() for one in pair]
        elif isinstance(item, Collection) and not isinstance(item, range):
            left += [(one, depth + 1) for one in item]
    return size


def growth_of_operator(operator: str, left: Any, right: Any, most: int) -> int:
    """Of a number's bits the square: what is done with them takes so long."""
    if operator == "%" and isinstance(left, _TEXT):
        return _of_format(left, right if isinstance(right, tuple) else (right,), most)
    if operator not in ("*", "**"):
        return 0
    if isinstance(left, int) and isinstance(right, int):
        power = left.bit_length() * max(right, 0)
        bits = power if operator == "**" else left.bit_length() + right.bit_length()
        return bits**2
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and hasattr(many, "__len__"):
            return (size_of(many, most) + 1) * max(times, 0)
    return 0


def growth_of_call(name: str, subject: Any, given: Given, most: int) -> int:
    """Of a filter or a method with this name; `given` are its other arguments."""
    if name in _BY_A_NUMBER:
        return max(_numbers(given), default=0)
    if name in _BY_A_PRODUCT:
        factors = (*_numbers(given), *(size_of(one, most) for one in given))
        return (size_of(subject, most) + 1) * max(factors, default=0)
    if name in _BY_A_SQUARE:
        return size_of(subject, most) ** 2
    if name == "round":
        return max(_numbers(given), default=0) ** 2
    if name == "sum":
        return most + 1 if any(isinstance(one, list | tuple) for one in given) else 0
    if name == "replace":
        return _of_replace(subject, given)
    if name == "join":
        return _of_join(subject, given, most)
    if name in ("format", "format_map"):
        return _of_format(subject, given, most)
    return 0


def _numbers(values: Iterable[Any]) -> list[int]:
    return [abs(value) for value in values if isinstance(value, int)]


def _of_replace(subject: Any, given: Given) -> int:
    texts = [value for value in given if isinstance(value, _TEXT)]
    if len(texts) < 2 or not isinstance(subject, _TEXT):
        return 0
    # An empty text is found between all characters.
    places = len(subject) // max(1, len(texts[0])) + 1
    return places * len(texts[1])


def _of_join(subject: Any, given: Given, most: int) -> int:
    """Of the filter the items are the subject, of the method they are given."""
    items, beside = subject, given
    if isinstance(subject, _TEXT):
        items, beside = next(iter(given), ()), (subject,)
    if not isinstance(items, Collection):
        return 0
    between = max((len(one) for one in beside if isinstance(one, _TEXT)), default=0)
    return size_of(items, most) + len(items) * between


def _of_format(form: Any, given: Given, most: int) -> int:
    """Its widths and precisions, and all that it is given in each of its places."""
    if not isinstance(form, _TEXT):
        return 0
    text = form if isinstance(form, str) else form.decode("latin-1")
    widths = [int(digits[:20]) for digits in _NUMBER.findall(text)]
    if _WIDTH_IS_GIVEN.search(text):
        widths += _numbers(given)
    places = text.count("%") + text.count("{")
    return sum(widths) + places * sum(size_of(one, most) for one in given)
