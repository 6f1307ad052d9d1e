"""The process contract: the JSON files with which processes are started.

`--spec FILE` (the master also `--group-spec FILE`) and files with secrets, as `--token-file FILE`,
are all that a process is given, in a pod and on a laptop alike. A spec never holds a secret. The
deployment program renders these files without importing any tier.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from contract.faults import faults_of

RANK_MASTER_PORT = 3000
MASTER_HTTP_PORT = 8080
STAGE_DATA_PORT = 3001
STAGE_HEALTH_PORT = 8081
PROXY_PORT = 8082
INFERENCE_PORT = 31504
ENGINE_HTTP_PORT = 8000
# What a master takes. The public API's limit is at most half of it: a block adds the history.
LARGEST_BODY_BYTES = 32 * 2**20
MINIMUM_TOKEN_BYTES = 16
MOST_RANKS = 1024
STALL_S = 300.0
STEP_LIMIT_S = 60.0
# Of vLLM; what its keeper was tried with.
ENGINE_VERSION = "0.32"
_UNKNOWN = "unknown key"


class SpecError(ValueError):
    """A spec file that does not follow the contract; the message lists every fault."""


class _File:
    """What is read from a file: unknown keys are refused, strings are not taken as numbers."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


_Limit = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class StageSpec(_File):
    """One rank, whatever the group serves. `memory_bytes` is the main memory that it may take, None
    where nobody has said.

    `bind_address` "" listens on every address (a pod); on one machine it is 127.0.0.1.
    `master_host` is where it finds the master. A load that gets no byte for `stall_s` is given up.
    With `cache_for_two` the model cache has room for the model that serves and the next one alone.
    """

    deployment_name: str
    rank: Annotated[int, Field(ge=0, lt=MOST_RANKS)]
    master_host: str = "127.0.0.1"
    master_port: int = RANK_MASTER_PORT
    bind_address: str = ""
    device: str = "cpu"
    threads: int | None = None
    memory_bytes: int | None = None
    interface: str = ""
    advertise_address: str = ""
    data_port: int = STAGE_DATA_PORT
    health_port: int = STAGE_HEALTH_PORT
    node: str = ""
    visible_devices: str = ""
    model_cache: str = ""
    cache_for_two: bool = False
    stall_s: _Seconds = STALL_S


@dataclass(frozen=True)
class MasterSpec(_File):
    """The master's process, whatever the group serves; `bind_address` as in StageSpec.

    A rank that a new spec has a part for, and that says nothing for `stall_s`, is not waited for.
    """

    deployment_name: str
    bind_address: str = ""
    master_port: int = RANK_MASTER_PORT
    http_port: int = MASTER_HTTP_PORT
    model_cache: str = ""
    stall_s: _Seconds = STALL_S


@dataclass(frozen=True)
class KeeperSpec(_File):
    """One rank of another engine (platform vllm), whatever the group serves; what has a name of
    StageSpec's means the same.

    `http_port` is the keeper's own: rank 0's is the master's API, the others' is for probes. The
    engine's processes meet at `meeting_port` of rank 0, and its own API listens at `engine_port` of
    rank 0's loopback only. `engine` is the program. While requests run, `step_limit_s` without a
    step of the engine is a stall. With `whole_shm` all of /dev/shm is this rank's. `engine_cache`
    is where the engine keeps what it has compiled, "" for its own place; `niceness` is its.
    """

    deployment_name: str
    rank: Annotated[int, Field(ge=0, lt=MOST_RANKS)]
    master_host: str = "127.0.0.1"
    master_port: int = RANK_MASTER_PORT
    bind_address: str = ""
    http_port: int = MASTER_HTTP_PORT
    engine_port: int = ENGINE_HTTP_PORT
    meeting_port: int = STAGE_DATA_PORT
    device: str = "cpu"
    threads: int | None = None
    memory_bytes: int | None = None
    interface: str = ""
    advertise_address: str = ""
    node: str = ""
    visible_devices: str = ""
    model_cache: str = ""
    cache_for_two: bool = False
    stall_s: _Seconds = STALL_S
    step_limit_s: _Seconds = STEP_LIMIT_S
    tensor_parallel: _Limit = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    extra_engine_args: tuple[str, ...] = ()
    engine: str = "vllm"
    engine_cache: str = ""
    niceness: Annotated[int, Field(ge=0, le=19)] = 0
    whole_shm: bool = False


@dataclass(frozen=True)
class RankPart(_File):
    """A rank's part of the model: `layers` is [first, one past last]. `device_memory` is that of
    its GPU in bytes, None for what is free there."""

    layers: tuple[int, int]
    device_memory: int | None = None


def _in_order(ranks: tuple[RankPart, ...]) -> tuple[RankPart, ...]:
    end = 0
    for rank, part in enumerate(ranks):
        first, after = part.layers
        if first != end or after <= first:
            raise ValueError(
                f"of rank {rank}, layers must begin at {end}, where the part before it ends, and"
                f" have one layer at least; they are [{first}, {after}]"
            )
        end = after
    return ranks


_Parts = Annotated[
    tuple[RankPart, ...], Field(min_length=1, max_length=MOST_RANKS), AfterValidator(_in_order)
]


@dataclass(frozen=True)
class GroupSpec(_File):
    """What a group of ranks serves: the master's, who hands it to the stages.

    `ranks` has one part for each rank, in order, with neither gap nor overlap. `max_model_len` None
    takes the model's own, `load_timeout_s` None sets no limit to a load, and `swap_drain_s` None
    gives requests their deadline to end before another spec takes this one's place.
    """

    deployment_name: str
    model_name: Annotated[str, Field(min_length=1)]
    ranks: _Parts
    model_revision: str = ""
    dtype: str = "auto"
    max_model_len: _Limit | None = None
    max_concurrent_requests: _Limit = 64
    prefill_token_budget: _Limit = 512
    request_deadline_s: _Seconds = 600.0
    load_timeout_s: _Seconds | None = None
    swap_drain_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True)
class SessionsSpec(_File):
    """Where chat histories lie and how far they grow.

    `url` redis://host:port/0 is a Redis or Valkey that several instances share; "": SQLite at
    `path`, for one instance.
    """

    path: str = "sessions.sqlite3"
    url: str = ""
    max_turns: int = 64
    max_tokens: int = 8192
    max_age_s: float = 7 * 24 * 3600.0


@dataclass(frozen=True)
class ProxySpec(_File):
    """One proxy block. `upstream_url` is the master's API (any OpenAI server will do).

    `chat_template_kwargs` are what the model's chat template gets where a request says nothing.
    The model goes by the deployment's name: an edit of the model leaves the block as it is.
    """

    block_id: str
    deployment_name: str
    upstream_url: str
    component: str = "model.pytorch-runner:1.0.0-stable"
    labels: dict[str, str] = field(default_factory=dict)
    system_message: str = ""
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    sessions: SessionsSpec = SessionsSpec()
    bind_address: str = ""
    port: int = PROXY_PORT
    request_deadline_s: float = 600.0
    max_body_bytes: int = 4 * 1024 * 1024


@dataclass(frozen=True)
class BlockSpec(_File):
    """One row of the inference server's static block table.

    `replica_urls` are the block's instances where they are known one by one; empty: `url` alone.
    """

    block_id: str
    url: str
    component: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    replica_urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class InferenceServerSpec(_File):
    """The public API.

    With `discovery_namespace` the blocks are found in that namespace of the cluster and `blocks`
    is empty. `request_log_path` "" keeps no request log; `log_texts` writes messages into it.
    `aliases` maps further names of models to the share of each block id, which may be 0.
    Pages of `cors_origins` may ask, "*" is every one; without them only the server's own page may.
    """

    deployment_name: str
    blocks: tuple[BlockSpec, ...]
    bind_address: str = ""
    port: int = INFERENCE_PORT
    request_deadline_s: float = 600.0
    max_body_bytes: int = 4 * 1024 * 1024
    discovery_namespace: str = ""
    request_log_path: str = ""
    request_log_rows: int = 100_000
    log_texts: bool = False
    cors_origins: tuple[str, ...] = ()
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)


AnySpec: TypeAlias = (
    StageSpec | KeeperSpec | MasterSpec | GroupSpec | ProxySpec | InferenceServerSpec
)
Spec = TypeVar("Spec", StageSpec, KeeperSpec, MasterSpec, GroupSpec, ProxySpec, InferenceServerSpec)


def render(spec: AnySpec) -> str:
    """The file's text: sorted keys, so that equal specs give equal files."""
    return json.dumps(asdict(spec), indent=2, sort_keys=True) + "\n"


def spec_hash(spec: AnySpec) -> str:
    """64 hexadecimal digits: the name of what a group serves."""
    return hashlib.sha256(render(spec).encode()).hexdigest()


def load(path: str | os.PathLike[str], kind: type[Spec], option: str = "--spec") -> Spec:
    """Read a spec file; raises SpecError naming the option, the file and every fault in it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SpecError(f"{option} {path}: cannot be read: {error.strerror}") from error
    return parse(data, kind, f"{option} {path}")


def load_group_spec(
    path: str | os.PathLike[str] | None, deployment_name: str, whose: str
) -> GroupSpec | None:
    """What `--group-spec` names; None where there is no such file. Raises SpecError where it is not
    one, or of another deployment than `whose`, the process's that was given it."""
    if path is None or not Path(path).exists():
        return None
    found = load(path, GroupSpec, "--group-spec")
    if found.deployment_name != deployment_name:
        raise SpecError(
            f"--group-spec {path}: deployment_name = {found.deployment_name!r}: must be this"
            f" {whose}'s, {deployment_name!r}"
        )
    return found


def parse(data: bytes, kind: type[Spec], source: str, whole: str = "the file") -> Spec:
    """What render() has written; raises SpecError naming the source and every fault in it."""
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        faults = faults_of(error, whole=whole, unknown=lambda _location: _UNKNOWN)
        # What lies under a key that we do not know may be a secret.
        shown = (f"{it.path}: {it.rule}" if it.rule == _UNKNOWN else str(it) for it in faults)
        raise SpecError(f"{source}: {'; '.join(shown)}") from None


def read_token(path: str | os.PathLike[str]) -> bytes:
    """The group token of `--token-file`; raises SpecError when missing or too short."""
    return _read_secret("--token-file", path)


def read_management_key(path: str | os.PathLike[str]) -> str:
    """The key of `--management-key-file`; raises SpecError as read_token does."""
    return _read_secret("--management-key-file", path).decode("utf-8", "replace")


def _read_secret(option: str, path: str | os.PathLike[str]) -> bytes:
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise SpecError(f"{option} {path}: cannot be read: {error.strerror}") from error
    if len(secret) < MINIMUM_TOKEN_BYTES:
        raise SpecError(
            f"{option} {path}: holds {len(secret)} bytes; at least {MINIMUM_TOKEN_BYTES} are needed"
        )
    return secret
