"""What every connection to the tier behind has."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tests.web.carrying_service import CarryingService
from web.upstream import LOST_AFTER_S, Upstream


def test_a_host_that_is_gone_is_given_up() -> None:
    """It sends no reset; the kernel asks, and says so."""

    async def run() -> None:
        async with CarryingService() as service:
            upstream = Upstream("the service", service.url, deadline_s=20)
            service.hangs_after = 400
            deadline = asyncio.get_running_loop().time() + 20
            answer = await upstream.ask("/x", {"stream": True}, {}, deadline)
            assert answer.close is not None
            response: Any = answer.close.__self__  # type: ignore[attr-defined]
            own = response.extensions["network_stream"].get_extra_info("socket")
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < LOST_AFTER_S
            limit_ms = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert limit_ms == LOST_AFTER_S * 1000
            await answer.close()
            await upstream.close()

    asyncio.run(run())
