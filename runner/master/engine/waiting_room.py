"""Who waits for a place, and whose turn is next."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Iterator

from runner.master.engine.requests import OpenRequest


class WaitingRoom:
    """The turn goes round the domains, each of which has its requests in order of arrival.

    Before all of them come those that are tried alone, then those that had a place and lost it,
    with an epoch or for want of memory, by arrival. Only what is next is ever taken, so that nobody
    waits for ever.
    """

    def __init__(self) -> None:
        self._returning: deque[OpenRequest] = deque()
        self._domains: OrderedDict[str, deque[OpenRequest]] = OrderedDict()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return bool(self._returning or self._domains)

    def __iter__(self) -> Iterator[OpenRequest]:
        yield from self._returning
        for requests in self._domains.values():
            yield from requests

    def add(self, request: OpenRequest) -> None:
        if request.had_place or request.tried_alone:
            insort(self._returning, request, key=_by_arrival)
        else:
            self._domains.setdefault(request.domain, deque()).append(request)

    def remove(self, request: OpenRequest) -> None:
        """One that waits leaves; its domain keeps its turn."""
        requests = self._domains.get(request.domain)
        if requests is None or request not in requests:
            self._returning.remove(request)
            return
        requests.remove(request)
        if not requests:
            del self._domains[request.domain]

    @property
    def next(self) -> OpenRequest:
        """Whose turn it is, of those that wait."""
        return self._returning[0] if self._returning else next(iter(self._domains.values()))[0]

    def take(self) -> OpenRequest:
        """Takes the next one out; its domain goes to the end."""
        if self._returning:
            return self._returning.popleft()
        domain, requests = self._domains.popitem(last=False)
        request = requests.popleft()
        if requests:
            self._domains[domain] = requests
        return request


def _by_arrival(request: OpenRequest) -> tuple[bool, int]:
    return not request.tried_alone, request.number
