"""What a stage does before it computes: have its part of a model here, check it, load it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from contract.memory import MemoryShare, fillable_tokens
from contract.specs import GroupSpec, StageSpec
from runner.errors import RunnerError, UnsupportedModel
from runner.models.folder import resolve_model
from runner.models.progress import FetchProgress
from runner.models.room import forget_other_models
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.decode_graphs import SWITCH
from runner.stage.model.stage_model import StageModel, choose_dtype
from runner.stage.process.device import Device, device_of
from runner.stage.process.kv_room import kv_tokens, longest_request, memory_of
from runner.transport.control import Prepare, StageInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedPart:
    """A rank's part of a spec, whose files lie on this machine and are checked."""

    spec: GroupSpec
    commit: str
    layers: tuple[int, int]
    checkpoint: Checkpoint
    sharing: int


def prepare(
    stage: StageSpec, order: Prepare, progress: FetchProgress, held: PreparedPart | None = None
) -> PreparedPart:
    """Fetch and check; nothing of what the process computes with, `held`, is touched. From any
    thread.

    `progress` counts the bytes of weights. Raises RunnerError: ModelUnavailable, UnsupportedModel,
    or where the memory does not hold the part.
    """
    spec, layers = order.spec, order.spec.ranks[stage.rank].layers
    device = torch.device(stage.device)
    _begin(stage, device_of(device))
    resolve = partial(
        resolve_model,
        spec.model_name,
        order.commit,
        stage.model_cache,
        progress=progress,
        patience_s=stage.stall_s,
    )
    checkpoint = Checkpoint(resolve().path)
    _check_layers(spec, checkpoint.layout.num_layers)
    dtype = choose_dtype(spec.dtype, device, checkpoint.config)
    share = MemoryShare(
        stage.rank,
        layers,
        checkpoint.layout.weight_bytes(layers, dtype),
        checkpoint.layout.kv_bytes_per_token(layers, dtype),
    )
    memory_of(stage, spec, share, device_of(device), order.sharing)
    files = checkpoint.own_files(layers)
    if stage.cache_for_two and (held is not None or order.in_force):
        keep = [checkpoint.folder] + ([held.checkpoint.folder] if held is not None else [])
        forget_other_models(Path(stage.model_cache), keep)
    resolve(tensor_files=files)  # into the same folder
    sizes = {file: _read_ahead(checkpoint.folder / file) for file in files}
    progress.want(sizes)
    for file, size in sizes.items():
        progress.reached(file, size)
    return PreparedPart(spec, order.commit, layers, checkpoint, order.sharing)


def _begin(stage: StageSpec, device: Device) -> None:
    try:
        device.begin()
    except Exception as error:  # whatever its driver says
        place = f"rank {stage.rank}: its device {stage.device}"
        raise RunnerError(f"{place} cannot be used: {error}") from error


def load(stage: StageSpec, part: PreparedPart) -> StageModel:
    """The model on its device; raises RunnerError."""
    began = time.monotonic()
    spec = part.spec
    model = StageModel.load(
        part.checkpoint,
        part.layers,
        dtype=spec.dtype,
        device=stage.device,
        decode_graphs=os.environ.get(SWITCH) == "1",
    )
    logger.info(
        "rank %d: layers %d to %d of %s, %d bytes of weights, loaded in %.1f s",
        stage.rank,
        *part.layers,
        spec.model_name,
        model.weight_bytes,
        time.monotonic() - began,
    )
    return model


def describe(stage: StageSpec, part: PreparedPart, model: StageModel) -> StageInfo:
    """Takes the memory for KV too, as much of it as requests can fill. The master fills in the
    address: that is known with the connection."""
    spec, device = part.spec, device_of(torch.device(stage.device))
    tokens = kv_tokens(stage, spec, model, device, part.sharing)
    requests, longest = spec.max_concurrent_requests, longest_request(spec, model)
    model.reserve_kv(fillable_tokens(tokens, requests=requests, longest=longest))
    return StageInfo(
        rank=stage.rank,
        address="",
        data_port=stage.data_port,
        layers=part.layers,
        weight_bytes=model.weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
        kv_tokens=tokens,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        max_positions=model.max_positions,
        rope_boundary=model.rope_boundary,
        commit=part.commit,
        dtype=str(model.torch_dtype).removeprefix("torch."),
        device=stage.device,
        process_id=os.getpid(),
    )


def _check_layers(spec: GroupSpec, count: int) -> None:
    end = spec.ranks[-1].layers[1]
    if end != count:
        raise UnsupportedModel(
            f"layers: those of all ranks end at {end}; {spec.model_name} has {count} layers"
        )


def _read_ahead(path: os.PathLike[str]) -> int:
    """Have the system read the file into its cache; its size."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        return os.fstat(file.fileno()).st_size
