"""The process contract: the one JSON file with which every process is started.

`--spec FILE` (stages also `--rank N`) and files with secrets, as `--token-file FILE`, are all that
a process is given, in a pod and on a laptop alike. A spec never holds a secret. The deployment
program renders these files without importing any tier.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from contract.faults import faults_of

RANK_MASTER_PORT = 3000
MASTER_HTTP_PORT = 8080
STAGE_DATA_PORT = 3001
STAGE_HEALTH_PORT = 8081
PROXY_PORT = 8082
INFERENCE_PORT = 31504
# What a master takes. The public API's limit is at most half of it: a block adds the history.
LARGEST_BODY_BYTES = 32 * 2**20
MINIMUM_TOKEN_BYTES = 16
_UNKNOWN = "unknown key"


class SpecError(ValueError):
    """A spec file that does not follow the contract; the message lists every fault."""


class _File:
    """What is read from a file: unknown keys are refused, strings are not taken as numbers."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class RankSpec(_File):
    """One rank. `layers` is [first, one past last]; memory is in bytes, None where unknown."""

    rank: int
    layers: tuple[int, int]
    device: str = "cpu"
    threads: int | None = None
    memory_bytes: int | None = None
    interface: str = ""
    advertise_address: str = ""
    data_port: int = STAGE_DATA_PORT
    health_port: int = STAGE_HEALTH_PORT
    node: str = ""
    visible_devices: str = ""


@dataclass(frozen=True)
class GroupSpec(_File):
    """The rank group: the same file for the master and for every stage.

    `bind_address` "" listens on every address (a pod); on one machine it is 127.0.0.1.
    `master_host` is where stages find the master. `max_model_len` None takes the model's own.
    """

    deployment_name: str
    model_name: str
    ranks: tuple[RankSpec, ...]
    model_revision: str = ""
    dtype: str = "auto"
    max_model_len: int | None = None
    max_concurrent_requests: int = 64
    prefill_token_budget: int = 512
    request_deadline_s: float = 600.0
    load_timeout_s: float = 1800.0
    bind_address: str = ""
    master_host: str = "127.0.0.1"
    master_port: int = RANK_MASTER_PORT
    http_port: int = MASTER_HTTP_PORT
    model_cache: str = ""


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


Spec = TypeVar("Spec", GroupSpec, ProxySpec, InferenceServerSpec)


def render(spec: GroupSpec | ProxySpec | InferenceServerSpec) -> str:
    """The file's text: sorted keys, so that equal specs give equal files."""
    return json.dumps(asdict(spec), indent=2, sort_keys=True) + "\n"


def spec_hash(spec: GroupSpec | ProxySpec | InferenceServerSpec) -> str:
    """64 hexadecimal digits; two processes of one group must have the same."""
    return hashlib.sha256(render(spec).encode()).hexdigest()


def load(path: str | os.PathLike[str], kind: type[Spec]) -> Spec:
    """Read a spec file; raises SpecError naming the file and every fault in it."""
    try:
        return TypeAdapter(kind).validate_json(Path(path).read_bytes())
    except OSError as error:
        raise SpecError(f"--spec {path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        faults = faults_of(error, whole="the file", unknown=lambda _location: _UNKNOWN)
        # What lies under a key that we do not know may be a secret.
        shown = (f"{it.path}: {it.rule}" if it.rule == _UNKNOWN else str(it) for it in faults)
        raise SpecError(f"--spec {path}: {'; '.join(shown)}") from None


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
