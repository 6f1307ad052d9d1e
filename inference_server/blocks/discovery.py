"""The blocks of a namespace: its Services say what they are, its EndpointSlices where.

What makes a Service a block stands in contract/names.py. Its replicas are asked at their own
addresses: behind a Service's one address, connections that are kept open would stay with the
replicas that were there first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
from kubernetes_asyncio import client, config
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.watch import Watch

from contract.names import (
    BLOCK_ID_ANNOTATION,
    COMPONENT_ANNOTATION,
    COMPONENT_LABEL,
    LABELS_ANNOTATION,
    PROXY_BLOCK,
)
from contract.specs import BlockSpec
from inference_server.blocks.table import BlockTable

SELECTOR = f"{COMPONENT_LABEL}={PROXY_BLOCK}"
SERVICE_NAME = "kubernetes.io/service-name"
# The API server ends a watch after this long and it goes on from where it was; a connection that
# died without a word is noticed a little later.
WATCH_S = 240
WATCH_GRACE_S = 10
LIST_TIMEOUT_S = 30
BACK_OFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
GONE = 410
ListCall = Callable[..., Awaitable[Any]]
log = logging.getLogger(__name__)


class Discovery:
    """Keeps `table` in step with the Services and EndpointSlices of `namespace`."""

    def __init__(self, namespace: str, table: BlockTable) -> None:
        self._namespace, self._table = namespace, table
        self._services: Followed | None = None
        self._slices: Followed | None = None
        self._reason = "has not begun"
        self._complained: set[str] = set()

    def not_synced(self) -> str:
        """Why the blocks are not known yet; "" once they are."""
        followed = (self._services, self._slices)
        if all(one is not None and one.synced for one in followed):
            return ""
        reasons = [one.failure for one in followed if one is not None and one.failure]
        reason = "; ".join(dict.fromkeys(reasons)) or self._reason
        return f"the blocks of namespace {self._namespace} are not known yet: {reason}"

    async def run(self) -> None:
        """Until cancelled."""
        configuration = client.Configuration()
        try:
            await _configure(configuration)
        except config.ConfigException as error:
            self._reason = f"no access to the Kubernetes API: {error}"
            log.error("%s", self._reason)
            return
        self._reason = "the Kubernetes API has not answered"
        async with client.ApiClient(configuration) as api:
            self._services = Followed(
                client.CoreV1Api(api).list_namespaced_service,
                self._namespace,
                SELECTOR,
                self._changed,
            )
            self._slices = Followed(
                client.DiscoveryV1Api(api).list_namespaced_endpoint_slice,
                self._namespace,
                SERVICE_NAME,
                self._changed,
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(self._services.run())
                group.create_task(self._slices.run())

    def _changed(self) -> None:
        if not self.not_synced():
            self._table.replace(self._rows())

    def _rows(self) -> list[BlockSpec]:
        """The oldest Service of a block id is the block."""
        assert self._services is not None
        rows: dict[str, BlockSpec] = {}
        services = self._services.objects.values()
        for service in sorted(services, key=lambda one: one.metadata.creation_timestamp):
            row = self._row(service)
            if row is None:
                continue
            if row.block_id in rows:
                name = service.metadata.name
                self._complain(f"Service {name}: another one has its block id {row.block_id}")
                continue
            rows[row.block_id] = row
        return list(rows.values())

    def _row(self, service: Any) -> BlockSpec | None:
        name, annotations = service.metadata.name, service.metadata.annotations or {}
        block_id = annotations.get(BLOCK_ID_ANNOTATION)
        if not block_id:
            self._complain(f"Service {name}: has no annotation {BLOCK_ID_ANNOTATION}")
            return None
        return BlockSpec(
            block_id=block_id,
            url="",
            component=annotations.get(COMPONENT_ANNOTATION, ""),
            labels=self._labels(name, annotations.get(LABELS_ANNOTATION, "{}")),
            replica_urls=tuple(sorted(self._urls(service))),
        )

    def _labels(self, name: str, text: str) -> dict[str, str]:
        try:
            labels = json.loads(text)
        except ValueError:
            labels = None
        if not isinstance(labels, dict):
            self._complain(f"Service {name}: annotation {LABELS_ANNOTATION} must be a JSON object")
            return {}
        return {str(key): str(value) for key, value in labels.items()}

    def _urls(self, service: Any) -> Iterator[str]:
        """The endpoints that are ready; a condition that is not given counts as true."""
        assert self._slices is not None
        ports = service.spec.ports or []
        name = ports[0].name if ports else None
        for found in self._slices.objects.values():
            if (found.metadata.labels or {}).get(SERVICE_NAME) != service.metadata.name:
                continue
            port = next((one.port for one in found.ports or [] if one.name == (name or "")), None)
            for endpoint in found.endpoints or []:
                ready = endpoint.conditions.ready if endpoint.conditions else None
                if port is not None and ready is not False:
                    address = endpoint.addresses[0]
                    yield f"http://{f'[{address}]' if ':' in address else address}:{port}"

    def _complain(self, message: str) -> None:
        if message not in self._complained:
            self._complained.add(message)
            log.warning("%s", message)


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


async def _configure(configuration: client.Configuration) -> None:
    """The pod's ServiceAccount, outside of a cluster the kubeconfig. Raises ConfigException."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await config.load_kube_config(client_configuration=configuration)
