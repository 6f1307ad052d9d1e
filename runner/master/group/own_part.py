"""What the master itself needs of a model that stages load: its commit, and whatever it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from contract.specs import GroupSpec
from runner.models.folder import resolve_model
from runner.transport.control import Served

# What the master reads of a model, made ready; raises ModelUnavailable.
MakeReady = Callable[[Served, Path], Awaitable[None]]


async def nothing_more(_served: Served, _folder: Path) -> None:
    """For a master without an API."""


class OwnPart:
    """`model_cache` as in MasterSpec."""

    def __init__(self, model_cache: str, make_ready: MakeReady) -> None:
        self._model_cache, self._make_ready = model_cache, make_ready

    async def ready(self, spec: GroupSpec, commit: str) -> Served:
        """The spec with the commit of its model, the one given or what its name stands for now.
        Raises ModelUnavailable, and whatever reads a tokenizer."""
        revision = commit or spec.model_revision
        folder = await asyncio.to_thread(
            resolve_model, spec.model_name, revision, self._model_cache
        )
        served = Served(spec, commit or folder.commit)
        await self._make_ready(served, folder.path)
        return served
