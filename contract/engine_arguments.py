"""Arguments of `vllm serve` that a stack file may not give (platform vllm), and why.

What opens a port or connects outward, what runs code that is not the engine's, what the keeper sets
itself or could not see the engine without. argparse takes the beginning of a name for the name, and
dots lead into the JSON of one, so that both are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SHAPE = re.compile(r"-{1,2}[A-Za-z][A-Za-z0-9_.+-]*(=.*)?", re.DOTALL)
_PORT = "it would open a port of its own or connect to others"
_CODE = "it would run code that is not the engine's own"
_BLIND = "the keeper could not see or guard the engine"
_FILES = "the keeper has fetched the model, and says where it lies"
_RANKS = "the keeper says which rank this is of how many, and where they meet"
_KEYS = {
    "served-model-name": "deployment_name and common_params.model_name",
    "dtype": "common_params.dtype",
    "max-model-len": "common_params.max_model_len",
    "max-num-seqs": "common_params.max_concurrent_requests",
    "max-num-batched-tokens": "common_params.prefill_token_budget",
    "tensor-parallel-size": "common_params.tensor_parallel",
    "gpu-memory-utilization": "common_params.gpu_memory_utilization",
    "device-memory-utilization": "common_params.gpu_memory_utilization",
    "pipeline-parallel-size": "nnodes",
    "kv-cache-memory-bytes": "per_rank_params[].memory",
    "shutdown-timeout": "common_params.request_deadline_s",
}
REFUSED: dict[str, str] = {
    **{name: f"the key for it is {key}" for name, key in _KEYS.items()},
    **dict.fromkeys(
        ("host", "port", "uds", "grpc-port", "root-path", "api-server-count", "enable-scale-out",
         "data-parallel-address", "data-parallel-backend", "data-parallel-external-lb",
         "data-parallel-hybrid-lb", "data-parallel-multi-port-external-lb", "data-parallel-rank",
         "data-parallel-rpc-port", "data-parallel-size", "data-parallel-size-local",
         "data-parallel-start-rank", "data-parallel-supervisor-port", "kv-transfer-config",
         "kv-events-config", "kv-offloading-backend", "ec-transfer-config", "ec-manager-config",
         "weight-transfer-config", "otlp-traces-endpoint", "collect-detailed-traces",
         "enable-elastic-ep", "elastic-ep-max-dp-size", "allowed-media-domains",
         "profiler-config", "fault-tolerance-config", "enable-fault-tolerance"),
        _PORT,
    ),
    **dict.fromkeys(
        ("trust-remote-code", "worker-cls", "worker-extension-cls", "scheduler-cls", "middleware",
         "logits-processors", "tool-parser-plugin", "reasoning-parser-plugin", "tool-server",
         "io-processor-plugin", "model-class-overrides", "model-impl", "load-format",
         "model-loader-extra-config", "enable-prompt-embeds", "trust-request-chat-template",
         "trust-request-mm-kwargs", "additional-config", "compilation-config", "hf-config-path"),
        _CODE,
    ),
    **dict.fromkeys(
        ("config", "headless", "disable-log-stats", "aggregate-engine-logging", "api-key",
         "ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs", "enable-ssl-refresh",
         "ssl-ciphers", "log-config-file", "log-level", "logging-config", "uvicorn-log-level",
         "enable-log-requests", "enable-log-outputs", "enable-log-deltas", "enable-sleep-mode",
         "return-tokens-as-token-ids", "allowed-local-media-path", "skip-tokenizer-init",
         "tokens-only", "device-ids", "disable-uvicorn-access-log"),
        _BLIND,
    ),
    **dict.fromkeys(
        ("model", "model-tag", "revision", "code-revision", "tokenizer", "tokenizer-revision",
         "download-dir", "hf-token", "hf-overrides", "runner", "convert"),
        _FILES,
    ),
    **dict.fromkeys(
        ("nnodes", "node-rank", "master-addr", "master-port", "distributed-executor-backend",
         "ray-workers-use-nsight", "max-parallel-loading-workers", "distributed-timeout-seconds",
         "cpu-distributed-timeout-seconds"),
        _RANKS,
    ),
}  # fmt: skip
# Arguments whose name another one only begins with.
_WHOLE_NAMES = {"reasoning-parser"}
# How the engine compiles; what else there is of -cc may name code.
_COMPILATION = re.compile(r"-cc\.(mode=[0-3]|backend=(eager|inductor)|cudagraph_mode=[A-Za-z_]+)")
# Short options of `vllm serve`.
_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "n": "nnodes",
    "r": "node-rank",
    "dp": "data-parallel-size",
    "dpn": "data-parallel-rank",
    "dpr": "data-parallel-start-rank",
    "dpl": "data-parallel-size-local",
    "dpa": "data-parallel-address",
    "dpp": "data-parallel-rpc-port",
    "dpb": "data-parallel-backend",
    "dph": "data-parallel-hybrid-lb",
    "dpe": "data-parallel-external-lb",
    "asc": "api-server-count",
}


def refusals(arguments: Sequence[str]) -> dict[int, str]:
    """By place in the list, the rule that an argument breaks."""
    found = {}
    for place, argument in enumerate(arguments):
        if rule := _refusal(argument, arguments[place - 1] if place else ""):
            found[place] = rule
    return found


def _refusal(argument: str, before: str) -> str:
    if not argument.startswith("-"):
        if before.startswith("-") and "=" not in before:
            return ""
        return "must begin with -, or be the value of the argument before it"
    if _SHAPE.fullmatch(argument) is None:
        return "" if _is_number(argument) and before.startswith("-") else "is no argument's name"
    name = argument.partition("=")[0].partition(".")[0].lstrip("-").replace("_", "-").rstrip("+")
    if not argument.startswith("--"):
        if _COMPILATION.fullmatch(argument):
            return ""
        if name == "cc":
            return "must be as in -cc.mode=2, -cc.backend=eager or -cc.cudagraph_mode=NONE"
        if name in _SHORT:
            return f"is refused: {REFUSED[_SHORT[name]]}"
        return "is no short argument that is known here; give its long name"
    positive = name.removeprefix("no-")
    for refused, why in REFUSED.items():
        if refused.startswith(positive) and positive not in _WHOLE_NAMES:
            return f"is refused: {why}"
    return ""


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return True
