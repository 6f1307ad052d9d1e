"""The plan of a stack: what its file says, put together with what its model is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from contract.faults import MISSING, Fault
from contract.memory import STEP_BYTES
from infra.plan.engine_models import refuse_unservable
from infra.plan.kv_room import KVRoom, kv_room
from infra.plan.layers import PlanError, RankPlan, RankResources, plan_layers
from infra.plan.lock import ModelReader
from infra.plan.model_files import BadModel
from infra.plan.model_shape import (
    DTYPE_BYTES,
    ModelShape,
    UnknownShape,
    UnsplittableModel,
    model_shape,
    refuse_unsplittable,
)
from infra.plan.table import byte_size
from infra.stack.config import DeploymentConfig, RankParams
from infra.stack.faults import StackConfigError

_STEPS_OF_GPUS = (
    "a GPU's tokens of KV are an estimate: its stage computes the largest step once, and what that "
    f"takes beyond {byte_size(STEP_BYTES)} is not there for KV; nor is what another process has of "
    "the GPU"
)
_OTHER_ENGINE = (
    "platform vllm: bytes are an estimate of ours. The engine's processes take more beside the "
    "weights than is counted, and how much of the rest is KV it decides itself when it starts"
)


@dataclass(frozen=True)
class StackPlan:
    """Every rank's part; `notes` says in sentences what was not checked or only estimated.

    `dtype` is what weights and KV are held in ("auto" where the model's own is not known);
    `max_model_len` None: not known. `kv_estimated`: a stage may have other tokens of KV than are
    planned; a note says why. `commit` is the one that a lock file names, "" without.
    """

    deployment_name: str
    model_name: str
    model_type: str
    dtype: str
    max_model_len: int | None
    gpu_pinning: str
    ranks: tuple[RankPlan, ...]
    params: tuple[RankParams, ...]
    memory_checked: bool
    kv_estimated: bool
    max_concurrent_requests: int
    notes: tuple[str, ...]
    commit: str = ""

    @property
    def kv_room(self) -> KVRoom | None:
        """None where no rank's memory is known."""
        return kv_room(self.ranks, self.max_model_len)

    def with_estimate(self, note: str) -> StackPlan:
        """The same, with one more reason why its tokens of KV are an estimate."""
        return replace(self, kv_estimated=True, notes=(*self.notes, note))


def plan_stack(deployment: DeploymentConfig, reader: ModelReader | None = None) -> StackPlan:
    """Plan a stack. Reads the model's config.json, from the hub where it must (5 s a question).

    Raises StackConfigError: the model cannot be split or does not fit, its files cannot be served,
    its lock is of another model, or its config.json cannot be read and the stack file does not give
    the layers of every rank.
    """
    reader = reader or ModelReader()
    plan = _plan(deployment, reader)
    if reader.lock is None:
        return plan
    return replace(plan, commit=reader.lock.commit, notes=(reader.note, *plan.notes))


def _plan(deployment: DeploymentConfig, reader: ModelReader) -> StackPlan:
    common = deployment.common_params
    try:
        found = reader.read(common)
        if found.config is None:
            return _plan_without_shape(
                deployment, f"its config.json cannot be read: {found.reason}"
            )
        refuse = refuse_unsplittable
        if deployment.platform == "vllm":
            refuse = partial(refuse_unservable, tensor_parallel=common.tensor_parallel)
        shape = model_shape(found.config, refuse)
    except (BadModel, UnsplittableModel) as error:
        raise _refusal("common_params.model_name", common.model_name, str(error)) from error
    except UnknownShape as error:
        return _plan_without_shape(deployment, str(error))
    return _plan_with_shape(deployment, shape, tuple(found.weight_files.values()))


def _plan_with_shape(
    deployment: DeploymentConfig, shape: ModelShape, file_sizes: tuple[int, ...]
) -> StackPlan:
    common = deployment.common_params
    longest = common.max_model_len
    if longest and shape.max_positions and longest > shape.max_positions:
        rule = f"must be at most the model's own maximum, {shape.max_positions}"
        raise _refusal("common_params.max_model_len", longest, rule)
    dtype = common.dtype
    if dtype == "auto":
        dtype = "float32" if deployment.gpu_pinning == "none" else shape.dtype  # type: ignore[assignment]
    resources = _resources(deployment)
    try:
        ranks = tuple(
            replace(rank, file_bytes=_file_bytes(rank, shape, dtype, file_sizes))
            for rank in plan_layers(shape, resources, dtype, longest)
        )
    except PlanError as error:
        raise _refusal("per_rank_params", MISSING, str(error)) from error
    notes = []
    if shape.stored_as and deployment.platform != "vllm":  # that computes with what is stored
        notes.append(_dequantized(shape, ranks, dtype))
    unchecked = [str(rank) for rank, item in enumerate(resources) if item.memory_bytes is None]
    if unchecked:
        key = "memory" if deployment.gpu_pinning == "none" else "device_memory"
        notes.append(
            f"memory was not checked for rank {', '.join(unchecked)}: per_rank_params has no {key}"
        )
    plan = _stack_plan(
        deployment,
        ranks,
        notes,
        model_type=shape.model_type,
        dtype=dtype,
        max_model_len=longest or shape.max_positions,
        memory_checked=not unchecked,
    )
    if not shape.exact:
        plan = plan.with_estimate(
            f"model_type {shape.model_type} is not in the plan's table: bytes are estimated "
            "as for a Llama of these sizes"
        )
    if deployment.platform == "vllm":
        plan = plan.with_estimate(_OTHER_ENGINE)
    elif deployment.gpu_pinning != "none" and plan.kv_room is not None:
        plan = plan.with_estimate(_STEPS_OF_GPUS)
    return plan


def _dequantized(shape: ModelShape, ranks: tuple[RankPlan, ...], dtype: str) -> str:
    held = sum(rank.weight_bytes or 0 for rank in ranks)
    return (
        f"the model is stored as {shape.stored_as}; its weights are held in {dtype}: "
        f"{held:,} bytes ({byte_size(held)})"
    )


def _file_bytes(rank: RankPlan, shape: ModelShape, dtype: str, file_sizes: tuple[int, ...]) -> int:
    """Where the files are not known one may hold the whole model. A rank's own tensors may begin
    and end within a file, and a tied embedding may lie in a third."""
    whole = sum(file_sizes) or shape.parameters * DTYPE_BYTES[shape.dtype]
    assert rank.weight_bytes is not None
    own = rank.weight_bytes * DTYPE_BYTES[shape.dtype] // DTYPE_BYTES[dtype]
    return min(whole, own + 3 * max(file_sizes, default=whole))


def _plan_without_shape(deployment: DeploymentConfig, reason: str) -> StackPlan:
    name = deployment.common_params.model_name
    ranges = [params.layer_range for params in deployment.ranks]
    missing = [str(rank) for rank, layers in enumerate(ranges) if layers is None]
    if missing:
        rule = (
            f"{reason}. So its layers cannot be divided: make it readable here (network, token, "
            "hub cache, folder or lock file), or give layers for every rank "
            f"(missing: {', '.join(missing)}), as in "
            'per_rank_params[0].layers: "0-7"'
        )
        raise _refusal("common_params.model_name", name, rule)
    ranks = tuple(
        RankPlan(rank, layers, None, None, None, None, None)
        for rank, layers in enumerate(ranges)
        if layers is not None
    )
    note = f"memory was not checked, nor that the model has these layers: {reason}"
    return _stack_plan(
        deployment,
        ranks,
        [note],
        model_type="",
        dtype=deployment.common_params.dtype,
        max_model_len=deployment.common_params.max_model_len,
        memory_checked=False,
    )


def _stack_plan(
    deployment: DeploymentConfig,
    ranks: tuple[RankPlan, ...],
    notes: list[str],
    *,
    model_type: str,
    dtype: str,
    max_model_len: int | None,
    memory_checked: bool,
) -> StackPlan:
    if deployment.gpu_pinning == "visible-devices":
        notes.append(
            "gpu_pinning visible-devices: the scheduler does not account for these devices; "
            "nothing keeps other pods off them"
        )
    return StackPlan(
        deployment_name=deployment.deployment_name,
        model_name=deployment.common_params.model_name,
        model_type=model_type,
        dtype=dtype,
        max_model_len=max_model_len,
        gpu_pinning=deployment.gpu_pinning,
        ranks=ranks,
        params=deployment.ranks,
        memory_checked=memory_checked,
        kv_estimated=False,
        max_concurrent_requests=deployment.common_params.max_concurrent_requests,
        notes=tuple(notes),
    )


def _resources(deployment: DeploymentConfig) -> list[RankResources]:
    on_cpu = deployment.gpu_pinning == "none"
    # Without the cores of every rank there is nothing to compare.
    known = on_cpu and all(params.cpu is not None for params in deployment.ranks)
    return [
        RankResources(
            memory_bytes=params.memory if on_cpu else _memory_of_devices(deployment, params),
            speed=params.speed or ((params.cpu or 1.0) if known else 1.0),
            layers=params.layer_range,
            packs=on_cpu,
        )
        for params in deployment.ranks
    ]


def _memory_of_devices(deployment: DeploymentConfig, params: RankParams) -> int | None:
    """Of all that share the rank's layers."""
    one = params.device_memory
    return None if one is None else one * deployment.devices_per_rank


def _refusal(path: str, value: object, rule: str) -> StackConfigError:
    return StackConfigError("the plan", [Fault(path, value, rule)])
