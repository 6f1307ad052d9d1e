"""Weights that a model makes of several stored tensors: experts, of each of which there is one."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Ingredient(NamedTuple):
    """A tensor of the key, stored under `stored_as` in this shape, goes into `weight`."""

    key: str
    weight: str
    stored_as: str
    shape: tuple[int, ...]


def uneven(ingredients: Iterable[Ingredient]) -> str:
    """What does not fit among those that go into one weight, in words; "" for nothing.

    transformers would say no name. Of each kind of tensor, alike but for a number in its name,
    there are as many, and those that are stored alike have one shape.
    """
    weights: dict[str, list[Ingredient]] = defaultdict(list)
    for found in ingredients:
        weights[found.weight].append(found)
    for weight, of_weight in weights.items():
        counts = Counter(_kind(found.key) for found in of_weight)
        for kind, count in counts.items():
            if count != max(counts.values()):
                return f"there are {count} of {kind}, and {max(counts.values())} go into {weight}"
        shapes: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
        for found in of_weight:
            shapes[_kind(found.stored_as)][found.shape] += 1
        for found in of_weight:
            [(usual, _)] = shapes[_kind(found.stored_as)].most_common(1)
            if found.shape != usual:
                return (
                    f"{found.stored_as} has shape {list(found.shape)}, and others that go into "
                    f"{weight} have {list(usual)}"
                )
    return ""


def _kind(key: str) -> str:
    return _NUMBER.sub("*", key)
