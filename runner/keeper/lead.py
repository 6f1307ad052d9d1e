"""The group as rank 0's keeper leads it: an epoch is one start of every rank's engine. Membership,
specs, swaps and the life of epochs are the master's own (runner/master/group)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from contract.specs import GroupSpec, KeeperSpec, MasterSpec
from runner.keeper.open_requests import OpenRequests
from runner.master.group.exchange import Exchange
from runner.master.group.formation import Loss
from runner.master.group.life import GroupLife
from runner.master.own_fault import OnFault, raise_fault
from runner.transport.connection import Proven
from runner.transport.control import Form, Served
from runner.transport.handshake import NO_EPOCH, Hello, Role
from web.listener import bind

# An engine compiles and measures before it answers; one that ends is noticed at once.
FORMING_LIMIT_S = 1800.0
_SAID_EACH_S = 1.0


class Lead(GroupLife):
    """As GroupLife; `requests` are those that are open, whoever computes them."""

    def __init__(
        self,
        spec: KeeperSpec,
        token: bytes,
        file: GroupSpec | None,
        *,
        on_fault: OnFault = raise_fault,
    ) -> None:
        master = MasterSpec(
            spec.deployment_name, model_cache=spec.model_cache, stall_s=spec.stall_s
        )
        super().__init__(master, token, file, on_fault=on_fault)
        self.spec = spec
        self.requests = OpenRequests()
        self.engine_says: Callable[[], str] = lambda: ""
        """The last line of this rank's engine."""
        self._exchange = Exchange(self._specs, self.history, self.requests)

    async def start(self) -> None:
        """Listen on master_port; raises PortError naming the port."""
        await self._open(bind(self.spec.bind_address, self.spec.master_port))

    @property
    def ready(self) -> bool:
        """Every rank's keeper is there, and the engine has answered in this epoch."""
        return self.state == "ready"

    @property
    def in_force(self) -> Served | None:
        """As runner/master/api asks its engine."""
        return self.served

    @property
    def _missing(self) -> str:
        return super()._missing.replace("stages", "keepers")

    def _forming_limit_s(self, served: Served) -> float:
        return served.spec.load_timeout_s or FORMING_LIMIT_S

    async def _form(self, served: Served) -> None:
        """Every rank starts its engine, and rank 0's answers."""
        ranks = len(served.spec.ranks)
        self._set_state("forming", f"the engines of epoch {self.epoch} are starting")
        joined = [join for join in self._members.joins(ranks) if join is not None]
        addresses = tuple((join.address, join.data_port) for join in joined)
        form = Form(self._id, self.epoch, served.spec_hash, addresses)
        self._members.tell_ranks(ranks, form)
        telling = asyncio.create_task(self._tell_what_the_engine_says())
        try:
            await self._all_formed(ranks)
        finally:
            telling.cancel()

    async def _tell_what_the_engine_says(self) -> None:
        """Whoever follows a swap sees that its engine goes on starting."""
        while True:
            await asyncio.sleep(_SAID_EACH_S)
            swap, said = self.swap, self.engine_says()
            if swap is not None and swap.phase == "loading" and said:
                swap.reason = f"the engine says: {said}"

    def _begin(self, served: Served) -> None:
        self._specs.formed()
        if served is not self.served:
            self._specs.answered()
        self._remember()
        self._change.set()
        self.requests.returned()

    def _end(self, served: Served, loss: Loss) -> None:
        """Open requests learn of it by their connections to the engine."""

    async def _not_formed(self, loss: Loss) -> None:
        await self._pause_when_barren(loss)

    def _judge(self, hello: Hello) -> str:
        """Keepers have nothing but control connections."""
        if hello.role == Role.CONTROL:
            return "" if hello.epoch == NO_EPOCH else "a control connection is of no epoch"
        return f"role = {hello.role.name}: a keeper accepts control connections only"

    async def _deliver(self, proven: Proven) -> None:
        await self._members.hold(proven)
