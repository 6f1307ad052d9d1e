"""Objects of one kind in the cluster, kept in step by list and watch, never by polling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.watch import Watch

# The API server ends a watch after this long and it goes on from where it was; a connection that
# died without a word is noticed a little later.
WATCH_S = 240
WATCH_GRACE_S = 10
LIST_TIMEOUT_S = 30
BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
GONE = 410
log = logging.getLogger(__name__)

ListCall = Callable[..., Awaitable[Any]]


class Followed:
    """`objects` by name, and `changed` called after each change. `synced` from the first list on.

    `list_call` is a list_namespaced_... of kubernetes_asyncio.
    """

    def __init__(
        self, list_call: ListCall, namespace: str, selector: str, changed: Callable[[], None]
    ) -> None:
        self._list_call, self._namespace, self._selector = list_call, namespace, selector
        self._changed = changed
        self._version = ""
        self._failures = 0
        self.objects: dict[str, Any] = {}
        self.synced = False
        self.failure = ""

    async def run(self) -> None:
        """Until cancelled. What is known stays known while the API server is away."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except ApiException as error:
                if error.status != GONE:
                    await self._failed(f"{error.status} {error.reason}")
                self._version = ""
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                await self._failed(str(error) or type(error).__name__)

    async def _list(self) -> None:
        listed = await self._list_call(
            self._namespace, label_selector=self._selector, _request_timeout=LIST_TIMEOUT_S
        )
        self.objects = {item.metadata.name: item for item in listed.items}
        self._version = listed.metadata.resource_version
        self._well()
        self.synced = True
        self._changed()

    async def _watch(self) -> None:
        async with Watch() as watch:
            events = watch.stream(
                self._list_call,
                self._namespace,
                label_selector=self._selector,
                resource_version=self._version,
                allow_watch_bookmarks=True,
                timeout_seconds=WATCH_S,
                _request_timeout=WATCH_S + WATCH_GRACE_S,
            )
            async for event in events:
                self._well()
                self._take(event)
                self._version = watch.resource_version or self._version

    def _take(self, event: dict[str, Any]) -> None:
        found = event["object"]
        if event["type"] == "DELETED":
            self.objects.pop(found.metadata.name, None)
        elif event["type"] in ("ADDED", "MODIFIED"):
            self.objects[found.metadata.name] = found
        else:  # a bookmark
            return
        self._changed()

    def _well(self) -> None:
        if self.failure:
            log.info("the Kubernetes API answers again")
        self._failures, self.failure = 0, ""

    async def _failed(self, reason: str) -> None:
        wait_s = BACK_OFF_S[min(self._failures, len(BACK_OFF_S) - 1)]
        self._failures += 1
        if reason != self.failure:
            self.failure = reason
            log.warning("the Kubernetes API does not answer: %s", reason)
        await asyncio.sleep(wait_s)
