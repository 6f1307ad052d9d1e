"""What the endpoints share: the blocks and the request log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from contract.specs import InferenceServerSpec
from inference_server.blocks.aliases import Aliases, Choice
from inference_server.blocks.table import BlockTable
from inference_server.exchange import Exchange
from inference_server.request_log import LogRow, RequestLog
from web.carry import Carrier
from web.request_id import current_request_id


@dataclass
class InferenceServer:
    spec: InferenceServerSpec
    table: BlockTable
    carrier: Carrier
    log: RequestLog | None
    aliases: Aliases = field(init=False)
    started: int = field(default_factory=lambda: int(time.time()))
    # Why the blocks are not known yet, "" where they are.
    not_synced: Callable[[], str] = str

    def __post_init__(self) -> None:
        self.aliases = Aliases(self.spec.aliases, self.table)

    async def not_ready(self, itself: bool) -> str:
        """Why no request would be served, "" where some block does; `itself`: this process alone.

        As in web.health.
        """
        reason = self.not_synced()
        return reason if reason or itself else await self.table.not_ready()

    async def choose(self, name: str, affinity: str) -> Choice:
        """By an alias, a block's id, or its model's or deployment's name.

        Equal affinities have the same block of an alias. Raises ApiError 404 and 503.
        """
        if alias := self.aliases.get(name):
            return Choice(await alias.in_order(affinity), aliased=True)
        return Choice([await self.table.by_model(name)])

    def exchange(self, request: Request, choice: Choice, **row: Any) -> Exchange:
        """`row` are fields of its LogRow."""
        caller = request.state.caller
        entry = LogRow(
            request_id=current_request_id() or "",
            caller=caller.name,
            path=request.url.path,
            block_id=choice.blocks[0].block_id,
            **row,
        )
        return Exchange(choice, caller, self.carrier, self.log, entry)
