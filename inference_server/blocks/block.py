"""One block: what it is, its replicas, and which of them is asked next."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import quote

import httpx

from contract.specs import BlockSpec
from inference_server.blocks.replica import Replica
from web.answer import UpstreamError
from web.errors import ApiError
from web.remembered import Remembered


class Block:
    """`spec` says what it is; its replicas come and go. `gone`: the table has it no more."""

    def __init__(self, spec: BlockSpec, deadline_s: float) -> None:
        self.spec = spec
        self.deadline_s = deadline_s
        self._replicas: dict[str, Replica] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self.gone = False
        self._models = Remembered(self._ask_models)
        self._component = Remembered(self._ask_component)
        self.update(spec)

    @property
    def block_id(self) -> str:
        return self.spec.block_id

    @property
    def replicas(self) -> list[Replica]:
        return list(self._replicas.values())

    @property
    def load(self) -> float:
        """Requests in flight per replica."""
        return sum(one.in_flight for one in self.replicas) / max(1, len(self._replicas))

    def update(self, spec: BlockSpec) -> None:
        """Another state of the same block; requests on a replica that is gone may finish."""
        self.spec = spec
        urls = spec.replica_urls or ((spec.url,) if spec.url else ())
        kept = {
            url: self._replicas.get(url) or Replica(self.block_id, url, self.deadline_s)
            for url in urls
        }
        for url in self._replicas.keys() - kept.keys():
            self._retire(self._replicas[url])
        self._replicas = kept

    async def close(self) -> None:
        """End every connection, those of requests in flight too."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*(one.close() for one in self.replicas))

    async def not_ready(self, max_age_s: float = 0.0) -> str:
        """Why no replica serves, "" when some does; answers of up to `max_age_s` ago will do."""
        reasons = await asyncio.gather(*(one.not_ready(max_age_s) for one in self.replicas))
        if not reasons:
            return f"block {self.block_id} has no replica that is ready"
        return "" if "" in reasons else "; ".join(dict.fromkeys(reasons))

    async def model_names(self) -> frozenset[str] | None:
        """What its /v1/models lists; None until it has answered once."""
        models = await self._models.get()
        return None if models is None else frozenset(models)

    async def model(self) -> dict[str, Any]:
        """What its /v1/models says of its first model; empty until it has answered once."""
        models = await self._models.get()
        return next(iter((models or {}).values()), {})

    async def component(self) -> dict[str, Any]:
        """Its component.json; empty until it has answered once."""
        return await self._component.get() or {}

    async def last_seq_no(self, session_id: str) -> int:
        """The last one that it answered in a session; -1 where it has none, or does not say."""
        document = await self._get(f"/sessions/{quote(session_id, safe='')}")
        seq_no = (document or {}).get("seq_no")
        return seq_no if isinstance(seq_no, int) else -1

    def choose(self, affinity: str, tried: Collection[Replica]) -> Replica:
        """The least loaded replica, if possible none of `tried`; `affinity` decides between equals.

        Raises UpstreamError 503 where there is none.
        """
        left = [one for one in self.replicas if one not in tried] or self.replicas
        if not left:
            message = f"block {self.block_id} has no replica that is ready"
            raise UpstreamError(503, message, code="no_replica", headers={"Retry-After": "1"})
        in_turn = [one for one in left if not one.avoided] or left
        return min(in_turn, key=lambda one: (one.in_flight, one.rank(affinity)))

    async def _ask_models(self) -> dict[str, dict[str, Any]] | None:
        """By name. None where nobody answers; a block without models has none."""
        document = await self._get("/v1/models")
        if document is None:
            return None
        try:
            return {str(entry["id"]): dict(entry) for entry in document["data"]}
        except (KeyError, TypeError, ValueError):
            return {}

    async def _ask_component(self) -> dict[str, Any] | None:
        return await self._get("/component.json")

    async def _get(self, path: str) -> dict[str, Any] | None:
        for replica in self.replicas:
            try:
                return await replica.upstream.get(path)
            except ApiError as error:
                if error.status == httpx.codes.NOT_FOUND:
                    return {}
        return None

    def _retire(self, replica: Replica) -> None:
        task = asyncio.create_task(replica.retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def known_ids(blocks: Iterable[Block]) -> str:
    """The block ids as an error lists them."""
    return ", ".join(block.block_id for block in blocks) or "none"
