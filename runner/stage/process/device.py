"""What a stage wants of its device besides computing; nobody has run CUDA's yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import torch

from contract.host_memory import available_bytes
from contract.memory import PROCESS_BYTES, gpu_memory_bytes, host_memory_bytes
from runner.stage.cpu.allocator import give_back_freed


class Device(Protocol):
    """Used by the main thread, which loads and then computes, where nothing else is said."""

    def begin(self) -> None:
        """Before anything is fetched for it; raises what the device has to say. From any thread."""

    def figures(self) -> Mapping[str, float]:
        """What it tells of itself, by names of DEVICE_GAUGES in health.py; from any thread."""

    def give_back(self) -> None:
        """Memory that was freed and is kept for later; from any thread."""

    def ask(self) -> None:
        """Raises what the device has to say; cheap, and there is nothing on its way."""

    def memory_bytes(self, declared: int | None, held: int, sharing: int, /) -> int:
        """What the rank may use, by the rule of contract/memory.py.

        `held` is what this process holds by that rule, `sharing` how many ranks are on its node.
        """

    def free_bytes(self) -> int:
        """What nobody has of it now; from any thread."""

    def peak_bytes(self, work: Callable[[], None], /) -> int | None:
        """What `work` takes at its peak beside what was there before; None where nobody counts it,
        and then it is not run."""


class Cpu:
    """The host has no state of ours that could break."""

    def begin(self) -> None:
        pass

    def figures(self) -> Mapping[str, float]:
        return {}

    def give_back(self) -> None:
        give_back_freed()

    def ask(self) -> None:
        pass

    def memory_bytes(self, declared: int | None, held: int, sharing: int, /) -> int:
        return host_memory_bytes(declared, mine=held, free=available_bytes(), sharing=sharing)

    def free_bytes(self) -> int:
        return available_bytes()

    def peak_bytes(self, _work: Callable[[], None], /) -> int | None:
        return None


class Cuda:
    """One GPU. After an error of its context every call raises it again."""

    def __init__(self, place: torch.device) -> None:
        self._place = place

    def begin(self) -> None:
        # cuDNN's attention plans anew for each length of keys: for each token that is decoded.
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.cuda.mem_get_info(self._place)

    def figures(self) -> Mapping[str, float]:
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return {}
        found: dict[str, float] = {}
        with suppress(RuntimeError):
            free, total = torch.cuda.mem_get_info(self._place)
            found["splitstack_stage_gpu_memory_bytes"] = total
            found["splitstack_stage_gpu_memory_used_bytes"] = total - free
            found["splitstack_stage_gpu_memory_reserved_bytes"] = torch.cuda.memory_reserved(
                self._place
            )
            # Of NVIDIA's management library, which an image may not have.
            with suppress(ModuleNotFoundError):
                found["llm_gpu_utilization"] = torch.cuda.utilization(self._place)
        return found

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def ask(self) -> None:
        # The stream knows of the context; the free memory is looked up in the driver, which knows
        # of a device that has fallen off the bus.
        torch.cuda.current_stream(self._place).query()
        torch.cuda.mem_get_info(self._place)

    def memory_bytes(self, declared: int | None, _held: int, _sharing: int, /) -> int:
        # The driver counts the context as taken; torch counts what it has taken beside that.
        free, _ = torch.cuda.mem_get_info(self._place)
        mine = torch.cuda.memory_reserved(self._place) + PROCESS_BYTES
        return gpu_memory_bytes(declared, mine=mine, free=free)

    def free_bytes(self) -> int:
        # Beside what the driver says, what torch keeps of its own.
        free, _ = torch.cuda.mem_get_info(self._place)
        kept = torch.cuda.memory_reserved(self._place) - torch.cuda.memory_allocated(self._place)
        return free + kept

    def peak_bytes(self, work: Callable[[], None], /) -> int | None:
        torch.cuda.reset_peak_memory_stats(self._place)
        before = torch.cuda.memory_allocated(self._place)
        work()
        torch.cuda.synchronize(self._place)
        peak = torch.cuda.max_memory_allocated(self._place) - before
        self.give_back()
        return peak


def device_of(place: torch.device) -> Device:
    """The one choice between the two."""
    return Cuda(place) if place.type == "cuda" else Cpu()
