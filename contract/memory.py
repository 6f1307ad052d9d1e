"""The one rule of a rank's memory: what a model's share takes of it, and what is left for KV.

    KV = memory - weights - worst step - process          all in bytes

    memory      what the rank may use: in the stack file `memory` on a CPU and `device_memory` on a
                GPU, in the spec `memory_bytes`; where that is not said, what is free when the stage
                looks
    weights     planned from config.json; what the tensors take once they are loaded
    worst step  the peak of the largest step, measured by the stage where its device counts its own
                memory (CUDA), never less than STEP_BYTES
    process     PROCESS_BYTES
    KV          bytes a token, from config.json as from the layers' own shapes, times tokens

While a rank serves one model, the weights of the next are loaded beside it where they fit into the
part of KV that no request can ever fill (`room_beside`); else the one goes before the other comes.

The plan, a stage that checks a model before it loads it and a stage that has loaded one ask here,
and refuse in the same words.
"""

from __future__ import annotations

from dataclasses import dataclass

# The interpreter with torch and the transport; on a GPU the context of CUDA and what its allocator
# cannot use of its segments.
PROCESS_BYTES = 500_000_000
# What the largest step takes beside what it reads: activations, masks, logits.
STEP_BYTES = 500_000_000

# Of what is free where no memory is declared. The host has other processes, and steps that nobody
# measures; a GPU has neither.
FREE_SHARE_OF_HOST = 0.5
FREE_SHARE_OF_GPU = 0.9


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """What one rank holds of a model. `layers` is [first, one past last], sizes are in bytes.

    `step_bytes` is the measured peak of the largest step; None: not measured.
    """

    rank: int
    layers: tuple[int, int]
    weight_bytes: int
    kv_bytes_per_token: int
    step_bytes: int | None = None

    @property
    def reserved_bytes(self) -> int:
        """For the process and its largest step."""
        return PROCESS_BYTES + max(STEP_BYTES, self.step_bytes or 0)

    def needed_bytes(self, tokens: int) -> int:
        """The least memory in which the share has KV for so many tokens."""
        return self.weight_bytes + self.reserved_bytes + tokens * self.kv_bytes_per_token

    def fits(self, memory_bytes: int, tokens: int = 1) -> bool:
        """Whether `memory_bytes` hold the share with KV for so many tokens."""
        return self.needed_bytes(tokens) <= memory_bytes

    def kv_bytes(self, memory_bytes: int) -> int:
        """Left for KV in so much memory; 0 where the rest does not fit."""
        return max(0, memory_bytes - self.needed_bytes(0))

    def kv_tokens(self, memory_bytes: int) -> int:
        """Positions of the KV cache in so much memory, over every request."""
        return self.kv_bytes(memory_bytes) // max(1, self.kv_bytes_per_token)

    def refusal(self, memory_bytes: int, tokens: int = 1) -> str:
        """Which rank, what it wants, what is there, what to do: for a share that does not fit."""
        first, end = self.layers
        kv = tokens * self.kv_bytes_per_token
        counted = f"{tokens:,} tokens" if tokens != 1 else "one token"
        return (
            f"rank {self.rank}: layers {first}-{end - 1} do not fit its memory: they need "
            f"{self.needed_bytes(tokens):,} bytes and {memory_bytes:,} are there "
            f"({self.weight_bytes:,} for weights, {kv:,} for KV of {counted}, "
            f"{self.reserved_bytes:,} for the process and its largest step); give the rank more "
            "memory (memory, on a GPU device_memory) or fewer layers, or take more ranks (nnodes), "
            "a smaller common_params.max_model_len or dtype bfloat16"
        )


def fillable_tokens(kv_tokens: int, *, requests: int, longest: int) -> int:
    """Of `kv_tokens` positions those that may ever hold something, of requests that run or of ended
    ones: what `requests` of `longest` positions each can fill."""
    return min(kv_tokens, requests * longest)


def room_beside(kv_tokens: int, kv_bytes_per_token: int, *, requests: int, longest: int) -> int:
    """Bytes for another model's weights while a loaded one computes: what its KV of `kv_tokens`
    positions has beyond those that are ever filled."""
    fillable = fillable_tokens(kv_tokens, requests=requests, longest=longest)
    return (kv_tokens - fillable) * kv_bytes_per_token


def gpu_memory_bytes(declared: int | None, *, mine: int, free: int) -> int:
    """What a rank may use of its GPU: `device_memory`, and no more than there is.

    `mine` is what this process has of the GPU already and `free` what nobody has.
    """
    if declared is not None:
        return min(declared, mine + free)
    return mine + int(free * FREE_SHARE_OF_GPU)


def host_memory_bytes(declared: int | None, *, mine: int, free: int, sharing: int) -> int:
    """What a rank on a CPU may use: `memory`, a limit that somebody keeps for it.

    Without: `mine`, which it has already, and its part of `free`, the bytes that are available on
    its node now, where `sharing` ranks are.
    """
    if declared is not None:
        return declared
    return mine + int(free * FREE_SHARE_OF_HOST) // sharing
