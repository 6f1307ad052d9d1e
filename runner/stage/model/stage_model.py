"""One stage of a model: its layers, its KV pool, one step at a time."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from contract.models import longest_text
from runner.errors import UnsupportedModel
from runner.stage.cpu.allocator import freed_memory_is_given_back
from runner.stage.cpu.packed_modules import pack_weights
from runner.stage.model import attention
from runner.stage.model.attention_kind import capability_of
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.decode_graphs import CudaCapture, DecodeGraphs, compute_again
from runner.stage.model.kv_pool import KVPool
from runner.stage.model.packed_batch import PackedBatch, Span, pack
from runner.stage.model.packed_step import PackedStep, StepInputs
from runner.stage.model.pruned import PassThrough, load_pruned
from runner.stage.model.rotary import LengthClasses
from runner.steps import Admission, Step

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCORED_AT_ONCE = 64 * 2**20  # bytes of logits; a few copies live at once
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


class StageModel:
    """Layers `layers[0]` .. `layers[1] - 1` of a model; one thread at a time may use it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        pack: bool,
        decode_graphs: bool,
    ) -> None:
        layout = checkpoint.layout
        self.num_layers = layout.num_layers
        self.hidden_size, self.vocab_size = layout.hidden_size, layout.vocab_size
        self.is_first, self.is_last = layers[0] == 0, layers[1] == self.num_layers
        self.max_positions = _max_positions(checkpoint.config)
        self.torch_dtype, self._device = dtype, device
        with freed_memory_is_given_back():
            self._model = load_pruned(checkpoint, layers, dtype, device)
            packed = pack_weights(self._model) if pack and device.type == "cpu" else 0
        self.weight_bytes = packed + _dense_bytes(self._model)
        self._rotary = LengthClasses(self._model, checkpoint.config)
        self.rope_boundary = self._rotary.boundary
        shapes = {index: layout.kv_shapes[index] for index in range(*layers)}
        self._pool = KVPool(shapes, dtype, device)
        self.kv_bytes_per_token = self._pool.bytes_per_token
        self._keep_rows = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._received: torch.Tensor | None = None
        self._captured: torch.Tensor | None = None
        self._capturing = False
        self._layers, self._own = self._model.get_submodule(layout.layer_list), range(*layers)
        self._through = {
            index: PassThrough(self._layers[index], layout.tuple_lengths[index])
            for index in self._own
        }
        self._place_hooks()
        self._graphs: DecodeGraphs | None = None
        if decode_graphs and self.rope_boundary is None:  # its host chooses between factors
            capture = CudaCapture() if device.type == "cuda" else compute_again
            self._graphs = DecodeGraphs(self._compute, self._pool, capture)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        layers: tuple[int, int],
        *,
        dtype: str = "auto",
        device: str = "cpu",
        pack: bool = True,
        decode_graphs: bool = False,
    ) -> StageModel:
        """Read a stage's own tensors (other stages' weight files may be absent).

        dtype "auto" is the checkpoint's on CUDA and float32 on the CPU. `pack` reorders weights for
        oneDNN (CPU only). `decode_graphs`: as in decode_graphs.py; on a CPU steps are padded only.
        Raises UnsupportedModel, ModelUnavailable.
        """
        count = checkpoint.layout.num_layers
        if not 0 <= layers[0] < layers[1] <= count:
            raise UnsupportedModel(
                f"layers = {list(layers)}: must be a range [first, end] within the {count} layers"
            )
        place = torch.device(device)
        chosen = choose_dtype(dtype, place, checkpoint.config)
        return cls(checkpoint, layers, chosen, place, pack, decode_graphs)

    @property
    def has_graphs(self) -> bool:
        return self._graphs is not None

    @property
    def graphs_are_off(self) -> bool:
        """One could not be recorded, or there are none."""
        return self._graphs is None or self._graphs.off

    @torch.inference_mode()
    def reserve_kv(self, positions: int) -> None:
        """Have memory for so many in all, over every request; what was held is dropped."""
        self._pool.reserve(positions)

    @torch.inference_mode()
    def admit(self, admission: Admission, *, ends_donor: bool = False) -> None:
        """Reserve KV for the request; what it had before is dropped. `ends_donor`: the admission's
        donor is about to be released. Raises RunnerError for a donor that has none."""
        request, capacity, reused = admission.request, admission.capacity, admission.reused
        if reused:
            self._pool.admit_after(
                request, capacity, admission.donor, reused, ends_donor=ends_donor
            )
        else:
            self._pool.admit(request, capacity)

    def release(self, request: int) -> None:
        """Free the request's KV; unknown ids are ignored."""
        self._pool.release(request)

    def reset(self) -> None:
        """Free all KV: a new epoch."""
        self._pool.clear()

    def give_back_unused(self) -> None:
        """On a CPU, the memory of the KV positions that hold nothing, until they are written."""
        self._pool.give_back()

    @torch.inference_mode()
    def forward(self, step: Step, hidden: torch.Tensor | None) -> torch.Tensor:
        """Run the step's segments through this stage's layers.

        `hidden` [tokens, hidden_size] comes from the stage before (None on the first). Returns
        [tokens, hidden_size], on the last stage float32 logits [step.sampled_rows, vocab_size].
        Raises RunnerError for a request that was not admitted or outgrows its capacity.
        """
        batch = self._pack(step)
        ends = (span.first + span.length - 1 for span in batch.spans)
        sampled = [row for row, item in zip(ends, step.segments, strict=True) if item.sample]
        self._rotary.begin(step.segments)
        self._captured, self._capturing = None, not self.is_last or step.scored_rows > 0
        ids = step.token_ids if self.is_first else ()
        if self.is_first:
            hidden = None
        else:
            assert hidden is not None, "every stage but the first receives hidden states"
            hidden = hidden.to(self._device, self.torch_dtype)
        if self._graphs is not None and len(sampled) == batch.rows and not step.scored_rows:
            result = self._graphs.run(batch, ids, hidden)
            if result is not None:
                return result
        capability = capability_of(self._device)
        return self._compute(StepInputs(self._pool, batch, ids, sampled, hidden, capability))

    def _compute(self, inputs: StepInputs) -> torch.Tensor:
        arguments = self._arguments(inputs.positions)
        if self.is_first:
            arguments["input_ids"] = inputs.ids[None]
        else:
            assert inputs.hidden is not None
            self._received = arguments["inputs_embeds"] = inputs.hidden[None]
        if self._keep_rows:
            arguments["logits_to_keep"] = inputs.sampled
        output = self._run(inputs.packed, arguments)
        if not self.is_last:
            assert self._captured is not None
            result, self._captured = self._captured[0], None
            return result
        logits: torch.Tensor = output.logits[0]
        return (logits if self._keep_rows else logits[inputs.sampled]).float()

    def _pack(self, step: Step) -> PackedBatch:
        spans = []
        first = 0
        for segment in step.segments:
            end = segment.start + segment.length
            slot = self._pool.slot(segment.request, end)
            slot.written = max(slot.written, end)
            spans.append(Span(first, segment.length, segment.start, slot.start))
            first += segment.length
        return pack(spans)

    @torch.inference_mode()
    def scored_logits(self, step: Step) -> Generator[torch.Tensor, None, None]:
        """Of the step that `forward` has just computed on the last stage: float32 logits of its
        scored rows in order, in parts [rows, vocab_size] of at most SCORED_AT_ONCE bytes. Whoever
        asks closes it.

        What comes after the layers may scale or cap its logits. So that is computed by the model's
        own forward, in which the layers pass on what they were given.
        """
        assert self._captured is not None, "no step with scored rows was computed"
        states, self._captured, self._capturing = self._captured[0], None, False
        rows: list[int] = []
        first = 0
        for segment in step.segments:
            rows.extend(range(first, first + segment.scored))
            first += segment.length
        self._rotary.begin(())
        with self._passing_through():
            size = max(1, SCORED_AT_ONCE // (4 * self.vocab_size))
            for begin in range(0, len(rows), size):
                part = states[rows[begin : begin + size]][None]
                nowhere = torch.zeros(part.shape[1], dtype=torch.long, device=self._device)
                arguments = self._arguments(nowhere)
                if self.is_first:
                    arguments["input_ids"] = torch.zeros_like(arguments["position_ids"])
                else:
                    arguments["inputs_embeds"] = part
                self._received = part
                yield self._run(None, arguments).logits[0].float()

    def _arguments(self, positions: torch.Tensor) -> dict[str, Any]:
        position_ids = positions[None]
        # A mask without padding spares transformers its search for packed texts in the positions.
        return {
            "position_ids": position_ids,
            "attention_mask": torch.ones_like(position_ids),
            "use_cache": False,
        }

    @contextmanager
    def _passing_through(self) -> Iterator[None]:
        own = {index: self._layers[index] for index in self._own}
        try:
            for index, through in self._through.items():
                self._layers[index] = through
            yield
        finally:
            for index, layer in own.items():
                self._layers[index] = layer

    def _run(self, step: PackedStep | None, arguments: dict[str, Any]) -> Any:
        attention.current.step = step
        try:
            return self._model(**arguments)
        finally:
            attention.current.step = None
            self._received = None

    def _place_hooks(self) -> None:
        first, last = self._own[0], self._own[-1]
        if not self.is_first:
            self._layers[first].register_forward_pre_hook(self._inject, with_kwargs=True)
        self._through[first].register_forward_pre_hook(self._inject, with_kwargs=True)
        self._layers[last].register_forward_hook(self._capture)

    def _inject(
        self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The received states as they are: models scale or norm what comes before the layers."""
        if args:
            return (self._received, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._received}

    def _capture(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        if self._capturing:
            self._captured = output[0] if isinstance(output, tuple) else output


def choose_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """ "auto" is the checkpoint's on CUDA and float32 on the CPU; raises UnsupportedModel."""
    if name != "auto":
        if name not in _DTYPES:
            raise UnsupportedModel(f"dtype = {name!r}: must be auto or one of {', '.join(_DTYPES)}")
        return _DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    kept: torch.dtype | None = config.get_text_config().dtype
    return kept or torch.float32


def _max_positions(config: Any) -> int:
    text = config.get_text_config()
    for key in _POSITION_KEYS:
        value = getattr(text, key, None)
        if isinstance(value, int):
            return longest_text(value, getattr(text, "rope_parameters", None))
    keys = ", ".join(_POSITION_KEYS)
    raise UnsupportedModel(f"model_type {config.model_type}: config.json has none of {keys}")


def _dense_bytes(model: nn.Module) -> int:
    """Bytes of what a checkpoint holds, shared ones once, without those that packing counted."""
    seen: dict[int, int] = {}
    saved = model.state_dict().keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
    for tensor in (*model.parameters(), *buffers):
        if not tensor.is_mkldnn and not tensor.is_meta:
            seen[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(seen.values())
