"""What the main thread of a stage does before it computes: load its own layers."""

from __future__ import annotations

import logging
import os
import signal
import time
from functools import partial

import torch

from contract.specs import GroupSpec, RankSpec
from runner.models.folder import LOADING_PATIENCE_S, resolve_model
from runner.models.progress import FetchProgress
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.process.compute_loop import ComputeLoop
from runner.stage.process.control_thread import ControlThread
from runner.stage.process.device import device_of
from runner.stage.process.kv_room import kv_tokens
from runner.transport.control import StageInfo

logger = logging.getLogger(__name__)


def load_stage(spec: GroupSpec, rank: RankSpec, control: ControlThread) -> ComputeLoop:
    """A loop that the group knows of and that is to be run now.

    Raises ModelUnavailable, UnsupportedModel, and RunnerError where the memory does not hold it.
    """
    if rank.threads is not None:
        torch.set_num_threads(rank.threads)
    commit = control.wait_for_commit()
    model = _load(spec, rank, commit)
    info = _describe(spec, rank, commit, model)
    compute = ComputeLoop(
        rank.rank,
        model,
        rank.device,
        fail=control.fail_epoch,
        end_process=control.end_process,
    )

    def leave(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # asked twice: at once
        control.leave()

    signal.signal(signal.SIGTERM, leave)
    control.serve(compute, info)
    return compute


def _load(spec: GroupSpec, rank: RankSpec, commit: str) -> StageModel:
    began = time.monotonic()
    name, cache = spec.model_name, spec.model_cache
    resolve = partial(
        resolve_model, name, commit, cache, progress=FetchProgress(), patience_s=LOADING_PATIENCE_S
    )
    checkpoint = Checkpoint(resolve().path)
    resolve(tensor_files=checkpoint.own_files(rank.layers))  # into the same folder
    model = StageModel.load(checkpoint, rank.layers, dtype=spec.dtype, device=rank.device)
    logger.info(
        "rank %d: layers %d to %d, %d bytes of weights, loaded in %.1f s",
        rank.rank,
        *rank.layers,
        model.weight_bytes,
        time.monotonic() - began,
    )
    return model


def _describe(spec: GroupSpec, rank: RankSpec, commit: str, model: StageModel) -> StageInfo:
    """What the master is told. It fills in the address: that is known with the connection."""
    tokens = kv_tokens(spec, rank, model, device_of(torch.device(rank.device)))
    return StageInfo(
        rank=rank.rank,
        address="",
        data_port=rank.data_port,
        layers=rank.layers,
        weight_bytes=model.weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token,
        kv_tokens=tokens,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        max_positions=model.max_positions,
        rope_boundary=model.rope_boundary,
        commit=commit,
        dtype=str(model.torch_dtype).removeprefix("torch."),
        device=rank.device,
        process_id=os.getpid(),
    )
