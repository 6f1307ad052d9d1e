"""What the compute loop wants of its device besides computing; nobody has run CUDA's yet."""

from __future__ import annotations

from typing import Protocol

import torch

from runner.stage.cpu.allocator import give_back_freed


class Device(Protocol):
    """Used by the compute thread only."""

    def give_back(self) -> None:
        """Memory that was freed and is kept for later: a step found too little of it."""

    def ask(self) -> None:
        """Raises what the device has to say; cheap, and there is nothing on its way."""


class Cpu:
    """The host has no state of ours that could break."""

    def give_back(self) -> None:
        give_back_freed()

    def ask(self) -> None:
        pass


class Cuda:
    """One GPU. After an error of its context every call raises it again."""

    def __init__(self, place: torch.device) -> None:
        self._place = place

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def ask(self) -> None:
        # The stream knows of the context; the free memory is looked up in the driver, which knows
        # of a device that has fallen off the bus.
        torch.cuda.current_stream(self._place).query()
        torch.cuda.mem_get_info(self._place)


def device_of(place: torch.device) -> Device:
    """The one choice between the two."""
    return Cuda(place) if place.type == "cuda" else Cpu()
