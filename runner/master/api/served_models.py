"""What the API answers with: of the model that is served its spec, its text, who judges prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from contract.specs import GroupSpec
from runner.errors import NotServing
from runner.master.api.defaults import GenerationDefaults
from runner.master.api.grammar_check import GrammarCheck
from runner.master.api.prompts import Prompts
from runner.master.engine.engine import Engine
from runner.master.metrics import Metrics
from runner.master.text.model_text import ModelText
from runner.transport.control import Served
from web.deadline import remaining_s
from web.disconnect import until_disconnected

_GRAMMARS = GrammarCheck()  # one for the process, which its programs end with


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One spec's."""

    served: Served
    text: ModelText
    prompts: Prompts

    @property
    def spec(self) -> GroupSpec:
        return self.served.spec


class Texts:
    """Of each model that is served or on its way in, which `in_use` tells; a large vocabulary takes
    a tenth of what a master has."""

    def __init__(self, in_use: Callable[[], Iterable[Served]] = tuple) -> None:
        self._in_use = in_use
        self._known: dict[tuple[str, str], ModelText] = {}

    async def make_ready(self, served: Served, folder: Path) -> None:
        """Read the text of a model; raises ModelUnavailable. Others that were go."""
        key = _key(served)
        text = self._known.get(key)
        if text is None:
            text = await asyncio.to_thread(ModelText.load, folder)
        kept = {_key(item) for item in self._in_use()}
        self._known = {it: known for it, known in self._known.items() if it in kept} | {key: text}

    def of(self, served: Served) -> ModelText:
        return self._known[_key(served)]


def _key(served: Served) -> tuple[str, str]:
    return served.spec.model_name, served.commit


@asynccontextmanager
async def entering(request: Request) -> AsyncIterator[ServedModel]:
    """What a request is judged and made into ids by, until it is entered. While the weights are
    exchanged it waits before, within its deadline.

    Raises NotServing, DeadlineExceeded, EngineFull, and ClientDisconnect.
    """
    engine: Engine = request.app.state.engine
    models: ServedModels = request.app.state.models
    while engine.gate.closed:
        limit_s = remaining_s(models.current().spec.request_deadline_s)
        await until_disconnected(request.receive, engine.let_in(limit_s))
    with engine.gate.passing():
        yield models.current()


class ServedModels:
    """One at a time. What /set_config has set stays over a change of the model."""

    def __init__(self, engine: Engine, texts: Texts) -> None:
        self._engine, self._texts = engine, texts
        self._current: ServedModel | None = None
        self._defaults = GenerationDefaults()
        self._metrics = Metrics("", engine.statistics)

    @property
    def defaults(self) -> GenerationDefaults:
        """Those in force."""
        self._follow()
        return self._defaults

    @property
    def metrics(self) -> Metrics:
        """Counting for the model that is served."""
        self._follow()
        return self._metrics

    def current(self) -> ServedModel:
        """Raises NotServing while nobody has said what is to be served."""
        self._follow()
        if self._current is None:
            raise NotServing(f"no model is served yet: {self._engine.reason}")
        return self._current

    def _follow(self) -> None:
        served, known = self._engine.in_force, self._current
        if served is None or (known is not None and known.served is served):
            return
        text = self._texts.of(served)
        self._defaults.follow(text.generation_defaults)
        prompts = Prompts(served.spec, self._engine, text, self._defaults, _GRAMMARS)
        self._current = ServedModel(served, text, prompts)
        self._metrics.serve(served.spec.model_name)
