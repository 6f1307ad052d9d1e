"""Which request's keys and values another one begins with.

A donor is a request that the stages have a slot of: one that is computed, or one that has ended and
is kept for those that begin alike. Steps pass every stage in order, so that whatever was sent in an
earlier step is there when a step comes. Only requests of one domain share, for how soon an answer
comes tells what was asked before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.master.engine.requests import ID_BYTES, OpenRequest, packed
from runner.steps import MOST_KEPT

LEAST_REUSED = 16  # tokens: fewer are computed as soon as they are copied


@dataclass(frozen=True, slots=True)
class Kept:
    """The slot of a request that has ended: `places` KV positions, `ids` at the first of them."""

    number: int
    domain: str
    long_class: bool
    ids: bytes
    places: int


@dataclass(frozen=True, slots=True)
class Reuse:
    """The first `length` positions of request `donor`, whose slot goes with it where it `ends`."""

    donor: int = 0
    length: int = 0
    ends: bool = False


class Donors:
    """`places` counts the KV positions of those that are kept; what holds for a new request goes
    before: the least recently used give way.

    A request that goes on from the whole of a kept one takes its slot over, and so does one that
    finds no room beside it. Until its admission is sent the slot is `taken`, and nobody else's.
    """

    def __init__(self) -> None:
        self.places = 0
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._taken: dict[int, Kept] = {}

    def keep(self, request: OpenRequest) -> list[int]:
        """One that has ended, where others may begin like it; the numbers of those to release."""
        if request.sent < LEAST_REUSED or request.losses:
            return [request.number]
        ids = packed(request.ids(0, request.sent))
        self._enter(Kept(request.number, request.domain, request.long_class, ids, request.places))
        return [self._drop(next(iter(self._kept)))] if len(self._kept) > MOST_KEPT else []

    def make_room(self, request: OpenRequest, room: int, *, long_class: bool) -> list[int]:
        """`room` KV positions are there for the request and those that are kept: enough for it.

        Sets its `places`, more than its capacity where it takes over a larger slot. Returns the
        numbers of those to release.
        """
        request.places = request.capacity
        ids = request.known_packed()
        best, length = self._longest(request, ids, long_class=long_class)
        if best is not None:
            self._kept.move_to_end(best.number)
            if length == len(best.ids) // ID_BYTES:
                self._take(request, best)
        last = 0 if best is None or request.number in self._taken else best.number
        released = self._drop_beyond(room - request.places, last)
        if last and self.places + request.places > room:
            self._take(request, self._kept[last])
        return released

    def shrink(self, room: int) -> list[int]:
        """So that those that are kept have no more; the numbers of those to release."""
        return self._drop_beyond(room)

    def reuse(
        self,
        request: OpenRequest,
        running: Iterable[OpenRequest],
        began: Mapping[int, int],
        *,
        long_class: bool,
    ) -> Reuse | None:
        """For the request's admission, which is sent now. None: the step that is being made
        computes more of its beginning, which is there for the next one.

        `began` says where the segments of this step begin, by request.
        """
        ids = request.known_packed()
        if (taken := self._taken.pop(request.number, None)) is not None:
            length = min(common(ids, taken.ids), request.known - 1)
            return Reuse(taken.number, length, ends=True)
        if not _may_reuse(request):
            return Reuse()
        best, length = self._longest(request, ids, long_class=long_class)
        found = Reuse() if best is None else Reuse(best.number, min(length, request.known - 1))
        soon = 0
        for other in running:
            if other.sent < LEAST_REUSED or other.domain != request.domain or other is request:
                continue
            if other.long_class != long_class or not _alike(ids, other.packed):
                continue
            shared = min(common(ids, other.packed), request.known - 1, other.sent)
            now = min(shared, began.get(other.number, other.sent))
            soon = max(soon, shared)
            if now > found.length:
                found = Reuse(other.number, now)
        if soon >= found.length + LEAST_REUSED:
            return None
        if found.length < LEAST_REUSED:
            return Reuse()
        if found.donor in self._kept:
            self._kept.move_to_end(found.donor)
        return found

    def give_back(self, request: OpenRequest) -> None:
        """It ends before its admission: what it would have taken over is kept on."""
        if (taken := self._taken.pop(request.number, None)) is not None:
            self._enter(taken)

    def clear(self) -> list[int]:
        """Keep none of them, the taken neither; their numbers, to be released."""
        released = [*self._kept, *(kept.number for kept in self._taken.values())]
        self._kept.clear()
        self._taken.clear()
        self.places = 0
        return released

    def _longest(
        self, request: OpenRequest, ids: bytes, *, long_class: bool
    ) -> tuple[Kept | None, int]:
        """Of those that are kept; the newest of several."""
        best, longest = None, LEAST_REUSED - 1
        if _may_reuse(request):
            for kept in reversed(self._kept.values()):
                if kept.domain != request.domain or kept.long_class != long_class:
                    continue
                if _alike(ids, kept.ids) and (length := common(ids, kept.ids)) > longest:
                    best, longest = kept, length
        return best, longest

    def _enter(self, kept: Kept) -> None:
        self._kept[kept.number] = kept
        self.places += kept.places

    def _drop_beyond(self, room: int, last: int = 0) -> list[int]:
        """The oldest, of which `last` stays."""
        released = []
        for number in list(self._kept):
            if self.places <= room:
                break
            if number != last:
                released.append(self._drop(number))
        return released

    def _drop(self, number: int) -> int:
        self.places -= self._kept.pop(number).places
        return number

    def _take(self, request: OpenRequest, kept: Kept) -> None:
        self._drop(kept.number)
        self._taken[request.number] = kept
        request.places = max(request.capacity, kept.places)


def common(first: bytes, second: bytes) -> int:
    """How many ids both begin with."""
    low, high = 0, min(len(first), len(second)) // ID_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        part = slice(low * ID_BYTES, middle * ID_BYTES)
        if first[part] == second[part]:
            low = middle
        else:
            high = middle - 1
    return low


def _alike(first: bytes, second: bytes) -> bool:
    size = LEAST_REUSED * ID_BYTES
    return first[:size] == second[:size]


def _may_reuse(request: OpenRequest) -> bool:
    """Not one whose prompt's scores are wanted, which are computed with it, nor one that may be
    what ends the group."""
    return not request.losses and not (request.echo and request.sampling.logprobs >= 0)
