"""The stack files of stacks/, looked at without a cluster and without a hub of the world."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub_server import HubServer, Repository, serving
from tests.infra.recorded_program import API_KEYS, TOKEN, Program, run_program, write_kubeconfig

STACKS = Path(__file__).parents[2] / "stacks"
STACK_FILES = sorted(STACKS.glob("Pulumi.*.yaml"))
_QWEN = {"model_type": "qwen2", "torch_dtype": "bfloat16", "max_position_embeddings": 32768}
# Of config.json on the hub, as much as a plan reads.
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-7B-Instruct": _QWEN
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
       "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    "Qwen/Qwen2.5-14B-Instruct": _QWEN
    | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48,
       "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064},
    "Qwen/Qwen2.5-72B-Instruct": _QWEN
    | {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
       "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064},
    "microsoft/Phi-3-mini-128k-instruct":
      {"model_type": "phi3", "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
       "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
       "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064},
}  # fmt: skip


def deployment_of(path: Path) -> dict[str, Any]:
    """The value of splitstack:deployment."""
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))["config"][
        "splitstack:deployment"
    ]
    return found


def on_clusters(path: Path) -> bool:
    """Whether the file is for `pulumi up`; else it is for `splitstack up`."""
    return "clusters" in deployment_of(path)


# Those that `pulumi up` takes.
CLUSTER_STACK_FILES = [path for path in STACK_FILES if on_clusters(path)]


@contextmanager
def hub(folder: Path, path: Path) -> Iterator[None]:
    """A hub that has the file's model, for this process and those that it starts."""
    name = deployment_of(path)["common_params"]["model_name"]
    assert name.startswith("demo:") or name in CONFIGS, f"{__file__}: give CONFIGS {name}"
    config = json.dumps(CONFIGS.get(name, {})).encode()
    files = {"config.json": config, "model.safetensors": b"", "tokenizer.json": b"{}"}
    with (
        serving(HubServer({name: Repository(files)})) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HF_HOME", str(folder / "hub-cache"))
        patch.setenv("HF_ENDPOINT", url)
        for variable in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(variable, raising=False)
        yield


def rendered(path: Path, folder: Path, **changes: object) -> Program:
    """What `pulumi up` of the file declares, in clusters of the test's own."""
    deployment = deployment_of(path) | changes
    deployment["clusters"] = {
        name: {"kubeconfig": str(write_kubeconfig(folder, name))} for name in deployment["clusters"]
    }
    server = deployment.get("inference_server", {})
    keys = {} if server.get("anonymous") else {"api_keys": API_KEYS}
    with hub(folder, path):
        return run_program(deployment, secrets={"group_token": TOKEN, **keys})
