"""Specs -> the arguments and the environment of one rank's engine. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contract.specs import GroupSpec, KeeperSpec

# On a CPU: of a rank's memory, the rest is for weights and the engine's processes.
_KV_SHARE = 4
_LEAST_KV_BYTES = 64 * 2**20
_KV_BLOCK_TOKENS = 128
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Of our own process; the engine has its own Python and its own packages.
_NOT_PASSED_ON = ("PYTHON", "VIRTUAL_ENV", "VLLM_", "LD_PRELOAD")


@dataclass(frozen=True)
class Meeting:
    """Where the engine's processes of all ranks meet: rank 0's address and port."""

    address: str
    port: int


@dataclass(frozen=True)
class EngineCommand:
    """What to start, in exactly this environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def engine_command(
    spec: KeeperSpec,
    group: GroupSpec,
    *,
    folder: str,
    config: Mapping[str, Any],
    meeting: Meeting,
    address: str,
    inherited: Mapping[str, str],
) -> EngineCommand:
    """`folder` has the model's files and `config` is its config.json; `address` is this rank's own.
    `inherited` is the keeper's environment."""
    return EngineCommand(
        tuple(_arguments(spec, group, folder, config, meeting)),
        _environment(spec, group, address, inherited),
    )


def _arguments(
    spec: KeeperSpec, group: GroupSpec, folder: str, config: Mapping[str, Any], meeting: Meeting
) -> list[str]:
    ranks = len(group.ranks)
    found = [spec.engine, "serve", folder]
    found += ["--served-model-name", group.deployment_name, group.model_name]
    found += ["--host", "127.0.0.1", "--port", str(spec.engine_port)]
    found += ["--dtype", _dtype(spec, group)]
    found += ["--pipeline-parallel-size", str(ranks)]
    found += ["--tensor-parallel-size", str(spec.tensor_parallel)]
    if group.max_model_len is not None:
        found += ["--max-model-len", str(group.max_model_len)]
    budget = max(group.prefill_token_budget, group.max_concurrent_requests)
    found += ["--max-num-seqs", str(group.max_concurrent_requests)]
    found += ["--max-num-batched-tokens", str(budget)]
    found += ["--disable-uvicorn-access-log", "--distributed-executor-backend", "mp"]
    if ranks > 1:
        found += ["--nnodes", str(ranks), "--node-rank", str(spec.rank)]
        found += ["--master-addr", meeting.address, "--master-port", str(meeting.port)]
    if spec.rank:
        found.append("--headless")
    found += _memory(spec, group, config)
    if spec.device == "cpu" and not any(it.startswith("-cc") for it in spec.extra_engine_args):
        # What the engine takes by itself needs minutes of a processor at each start, and
        # --enforce-eager dies at the first request over several ranks.
        found += ["-cc.mode=2", "-cc.backend=eager"]
    return [*found, *spec.extra_engine_args]


def _dtype(spec: KeeperSpec, group: GroupSpec) -> str:
    if group.dtype == "auto" and spec.device == "cpu":
        return "float32"
    return group.dtype


def _memory(spec: KeeperSpec, group: GroupSpec, config: Mapping[str, Any]) -> list[str]:
    if spec.device != "cpu":
        share = spec.gpu_memory_utilization
        return [] if share is None else ["--gpu-memory-utilization", f"{share:g}"]
    if spec.memory_bytes is None:
        return []
    room = max(_LEAST_KV_BYTES, spec.memory_bytes // _KV_SHARE)
    wanted = _kv_bytes(group.ranks[spec.rank].layers, _dtype(spec, group), group, config)
    return ["--kv-cache-memory-bytes", str(min(room, wanted or room))]


def _kv_bytes(
    layers: tuple[int, int], dtype: str, group: GroupSpec, config: Mapping[str, Any]
) -> int:
    """Of all requests at once, each as long as one may be; 0 where config.json does not say."""
    heads = config.get("num_attention_heads")
    grouped = config.get("num_key_value_heads", heads)
    hidden, longest = config.get("hidden_size"), config.get("max_position_embeddings")
    size = config.get("head_dim")
    if size is None and isinstance(hidden, int) and isinstance(heads, int) and heads:
        size = hidden // heads
    longest = group.max_model_len or longest
    if not (isinstance(grouped, int) and isinstance(size, int) and isinstance(longest, int)):
        return 0
    blocks = -(-longest // _KV_BLOCK_TOKENS) + 1
    tokens = group.max_concurrent_requests * blocks * _KV_BLOCK_TOKENS
    per_token = 2 * grouped * size * (layers[1] - layers[0]) * _VALUE_BYTES.get(dtype, 2)
    return tokens * per_token


def _environment(
    spec: KeeperSpec, group: GroupSpec, address: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    kept = {name: value for name, value in inherited.items() if not name.startswith(_NOT_PASSED_ON)}
    found = {
        "VLLM_HOST_IP": address,
        "VLLM_PP_LAYER_PARTITION": ",".join(
            str(part.layers[1] - part.layers[0]) for part in group.ranks
        ),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # No package of the image adds code of its own.
        "VLLM_PLUGINS": "",
        # What is served lies in a folder; nothing is to be asked of the hub.
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if group.load_timeout_s is not None:
        found["VLLM_ENGINE_READY_TIMEOUT_S"] = str(max(1, int(group.load_timeout_s)))
    if spec.interface:
        found["GLOO_SOCKET_IFNAME"] = found["NCCL_SOCKET_IFNAME"] = spec.interface
    if spec.engine_cache:
        found["VLLM_CACHE_ROOT"] = f"{spec.engine_cache}/vllm"
        found["TORCHINDUCTOR_CACHE_DIR"] = f"{spec.engine_cache}/inductor"
        found["TRITON_CACHE_DIR"] = f"{spec.engine_cache}/triton"
        found["XDG_CACHE_HOME"] = spec.engine_cache
    if spec.device == "cpu":
        # Threads that spin while they wait take the cores of other ranks and tiers.
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE"}
        found["OMP_NUM_THREADS"] = str(spec.threads or 1)
    return kept | found
