"""The rank group of `platform: torch`: its epochs are pipelines of stages, which the engine steps.

The listener (the engine) is called from this module's own task or from a connection's data, never
from within a call that it makes itself.
"""

from __future__ import annotations

from contract.specs import GroupSpec, MasterSpec
from runner.master.group.exchange import Exchange
from runner.master.group.formation import Formation, GroupListener, Loss
from runner.master.group.incoming import refusal
from runner.master.group.life import GroupLife
from runner.master.group.own_part import MakeReady, nothing_more
from runner.master.group.pipeline_ends import PipelineEnds
from runner.master.own_fault import OnFault, own_work, raise_fault
from runner.steps import Step, StepResult
from runner.transport.connection import Proven
from runner.transport.control import Form, Served, StageInfo
from runner.transport.frames import Epoch, Limits
from runner.transport.handshake import MASTER_RANK, Hello, Role
from web.listener import bind

FORMING_LIMIT_S = 10.0  # a stage may be in the middle of a long step of the epoch before


class Group(GroupLife):
    """As GroupLife; `listener` learns of each epoch that is formed and lost."""

    _listener: GroupListener

    def __init__(
        self,
        spec: MasterSpec,
        token: bytes,
        file: GroupSpec | None,
        *,
        make_ready: MakeReady = nothing_more,
        on_fault: OnFault = raise_fault,
    ) -> None:
        super().__init__(spec, token, file, make_ready=make_ready, on_fault=on_fault)
        self._master = spec
        self._ends: PipelineEnds | None = None

    async def start(self, listener: GroupListener) -> None:
        """Listen on master_port, and tell `listener`; raises PortError naming the port."""
        self._listener = listener
        self._exchange = Exchange(self._specs, self.history, listener)
        await self._open(bind(self._master.bind_address, self._master.master_port))

    def submit(self, step: Step) -> None:
        """Send a step on its way; only while ready. Never blocks."""
        assert self.state == "ready"
        assert self._ends is not None
        self._ends.send(step)

    @property
    def specs_in_use(self) -> tuple[Served, ...]:
        """What is in force, and what is on its way in once its commit is known."""
        swap = self._specs.specs.running
        both = self.served, swap.served if swap is not None else None
        return tuple(item for item in both if item is not None)

    def answered(self) -> None:
        """The epoch of a spec that is not in force yet has computed a token: it is now."""
        self._specs.answered()
        self._remember()

    def not_answered(self, reason: str) -> None:
        """It has not."""
        if self._forming is not None:
            self._specs.not_answered(self._forming, reason)

    def _change_limits(self, wanted: Served) -> None:
        if self._ends is not None:
            self._ends.accept(self._limits(wanted))

    @own_work
    def _taken(self) -> None:
        if self.state == "ready" and self.served is not None:
            self._listener.take(self.served)

    def _forming_limit_s(self, _served: Served) -> float:
        return FORMING_LIMIT_S

    async def _form(self, served: Served) -> None:
        epoch, stages = Epoch(self._id, self.epoch), self._loaded(served)
        self._ends = PipelineEnds(
            epoch, self._limits(served), deliver=self._listener_result, broken=self._lose
        )
        addresses = tuple((stage.address, stage.data_port) for stage in stages)
        form = Form(epoch.master, epoch.counter, served.spec_hash, addresses)
        self._members.tell_ranks(len(stages), form)
        hello = Hello(Role.DATA, MASTER_RANK, epoch, served.spec_hash)
        await self._ends.open(*addresses[0], self._token, hello)
        await self._all_formed(len(stages))

    def _loaded(self, served: Served) -> tuple[StageInfo, ...]:
        """Those of the spec, which have all loaded."""
        found = self._members.stages(len(served.spec.ranks))
        return tuple(stage for stage in found if stage is not None)

    def _limits(self, served: Served) -> Limits:
        stages, spec = self._loaded(served), served.spec
        positions = max([stage.max_positions for stage in stages])
        return Limits.of_master(
            spec,
            vocab=stages[-1].vocab_size,
            positions=max(positions, spec.max_model_len or 0),
        )

    def _begin(self, served: Served) -> None:
        trial = served is not self.served
        self._listener.group_formed(Formation(self.epoch, self._loaded(served), served, trial))
        self._specs.formed()
        self._remember()

    def _end(self, served: Served, loss: Loss) -> None:
        if served is not self.served:
            self._specs.not_answered(served, loss.reason)
        self._listener.group_lost(loss.reason, announced=loss.announced)

    def _close_epoch(self) -> None:
        if self._ends is not None:
            self._ends.close()
            self._ends = None

    def _judge(self, hello: Hello) -> str:
        return refusal(hello, self._forming, self._ends, Epoch(self._id, self.epoch))

    async def _deliver(self, proven: Proven) -> None:
        if proven.hello.role == Role.CONTROL:
            await self._members.hold(proven)
        elif self._ends is not None and self._ends.epoch == proven.hello.epoch:
            self._ends.accept_return(proven.connection)
        else:
            proven.connection.close()

    def _listener_result(self, result: StepResult) -> None:
        if self.state == "ready":
            self._listener.step_returned(result)
