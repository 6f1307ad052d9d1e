"""Asking the tier behind so that its death is a pause: whoever holds the connection carries on.

Every request is asked for with its ids (contract/carry.py), also one that is to be answered whole.
When the connection ends without its end, cannot be had, or says 502 or 503, the request waits until
the service is back and is asked again, after the ids that were delivered. Its bounds are its
deadline, and MOST_FRUITLESS times in a row without a new id. What nobody has taken yet waits for
PATIENCE_S only.

Of a service that knows no ids only what has delivered nothing is asked again: text alone does not
say where its tokens end, so that another one cannot go on behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from contract import carry
from web.answer import Answer
from web.carried_request import OUTCOMES, CarriedRequest, Service
from web.delivered import Delivered
from web.errors import invalid_field


class Carrier:
    """Of one tier; counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Requests asked again after a loss, by what came of it."
        self._carries = Counter("request_carries_total", text, ("outcome",), registry=registry)
        for outcome in OUTCOMES:
            self._carries.labels(outcome)

    async def ask(
        self, service: Service, path: str, document: dict[str, Any], *, passes_lines: bool = False
    ) -> Answer:
        """POST `document`. Errors of the service come back as an Answer with their status.

        `passes_lines`: the caller asked for ids itself, and gets events in every case. Raises
        UpstreamError and ApiError: 400, 502, 504 when the deadline passes, this tier's or the
        client's own.
        """
        whole = document.get("stream") is not True and not passes_lines
        delivered = Delivered(_base(document), passes_lines=passes_lines, whole=whole)
        request = CarriedRequest(service, path, document, delivered, self._count)
        if whole:
            return await request.whole()
        return await request.streamed()

    def _count(self, outcome: str) -> None:
        self._carries.labels(outcome).inc()


def asks_for_ids(headers: Mapping[str, str]) -> bool:
    """Whether a caller, by its headers, carries the request itself."""
    return headers.get(carry.HEADER) == carry.ASKS_FOR_IDS


def _base(document: dict[str, Any]) -> carry.Carry | None:
    """What the caller has had already; raises ApiError 400."""
    given = document.get(carry.FIELD)
    try:
        return None if given is None else carry.parse_field(given)
    except carry.CarryError as error:
        raise invalid_field(error.fault.path, error.fault.rule, error.fault.value) from error
