"""What the main thread of a stage is given to do, in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from runner.stage.model.stage_model import StageModel
    from runner.stage.process.epoch_links import EpochLinks
    from runner.stage.process.load import PreparedPart
    from runner.transport.data_link import Frame


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame to compute, and the links that its answer belongs to."""

    frame: Frame
    links: EpochLinks


@dataclass(frozen=True, slots=True)
class NewEpoch:
    """Drop all KV, then call `ready` (from the main thread)."""

    ready: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Have this part in place of what is held; `model` where it is loaded already."""

    part: PreparedPart
    model: StageModel | None


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave, once what was queued before is done; the process ends with `code`."""

    code: int = 0


Work: TypeAlias = Arrival | NewEpoch | Exchange | Stop
