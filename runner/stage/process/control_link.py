"""A stage's control connection: joins, keeps it alive, dials again for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from contract.specs import KeeperSpec, StageSpec
from runner.errors import ProtocolError
from runner.transport.connection import OccasionalLog
from runner.transport.control import Heartbeat, Join, Message, Refusal
from runner.transport.control_channel import ControlChannel
from runner.transport.dialling import BackOff, dial_until_answered
from runner.transport.handshake import NO_EPOCH, NO_SPEC, Hello, Role
from runner.transport.silence import SILENCE_LIMIT_S

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 1.0


class ControlLink:
    """`make_join` is asked for the join at each connection, with our address on it; `received`
    gets each message, `lost` is called when an established connection has ended."""

    def __init__(
        self,
        spec: StageSpec | KeeperSpec,
        token: bytes,
        *,
        make_join: Callable[[str], Join],
        received: Callable[[Message], None],
        lost: Callable[[str], None],
    ) -> None:
        self._spec, self._token = spec, token
        self._hello = Hello(Role.CONTROL, spec.rank, NO_EPOCH, NO_SPEC)
        self._make_join, self._received, self._lost = make_join, received, lost
        self._channel: ControlChannel | None = None
        self._complaints = OccasionalLog()
        self.refusal = ""
        """Why the master has refused it last; "" once it was let in."""

    @property
    def connected(self) -> bool:
        return self._channel is not None

    def send(self, message: Message) -> None:
        """Dropped while there is no connection: the next join says all that counts."""
        if self._channel is not None:
            self._channel.send(message)

    async def flush(self) -> None:
        """Wait until what was sent has left this process."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                await self._channel.flush()

    async def run(self) -> None:
        """Until cancelled."""
        host, port = self._spec.master_host, self._spec.master_port
        back_off = BackOff(FIRST_DELAY_S, LAST_DELAY_S)
        while True:
            connection = await dial_until_answered(
                host, port, self._token, self._hello, back_off, self._complain
            )
            if await self._keep(connection):
                back_off.reset()
            await back_off.wait()

    async def _keep(self, connection: socket.socket) -> bool:
        """One connection's life; whether the master let us in."""
        address = str(connection.getsockname()[0])
        channel = await ControlChannel.over(connection)
        watch: asyncio.Task[None] | None = None
        welcome = False
        reason = "ended"
        try:
            channel.send(self._make_join(address))
            self._channel = channel
            watch = asyncio.create_task(self._watch(channel))
            while True:
                message = await channel.receive()
                if isinstance(message, Refusal):
                    self.refusal = reason = message.reason
                    self._complain(f"the master refuses: {reason}")
                    return False
                welcome, self.refusal = True, ""
                if not isinstance(message, Heartbeat):
                    self._received(message)
        except (OSError, ProtocolError) as error:
            reason = str(error)
        finally:
            self._channel = None
            if watch is not None:
                watch.cancel()
            channel.abort()
            self._lost(f"the control connection to the master: {reason}")
        return welcome

    async def _watch(self, channel: ControlChannel) -> None:
        """End the connection of a master that has fallen silent."""
        await channel.keep_alive()
        logger.warning("the master has been silent for %g s", SILENCE_LIMIT_S)
        channel.abort()

    def _complain(self, why: str) -> None:
        self._complaints.log(logging.WARNING, f"not joined: {why}")
