"""Stack files for the Pulumi program: the matrix that its tests run over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.infra.recorded_program import API_KEYS, DIGEST, IMAGES, RUNNER, write_kubeconfig

DEMO = "demo:smollm2-135m-instruct"
SECRETS = {
    "hub_token": "hub-token-of-the-test",
    "api_keys": API_KEYS,
    "session_store_password": "password-of-the-test",
}
PINNINGS: dict[str, list[dict[str, Any]]] = {
    "none": [{"rank": 0}, {"rank": 1, "cpu": "500m", "memory": "3Gi"}],
    "visible-devices": [
        {"rank": 0, "node_id": "n1", "nvidia_visible_devices": "0,1", "cuda_visible_devices": "1"},
        {"rank": 1, "node_id": "n1", "nvidia_visible_devices": "0"},
    ],
    "resource": [{"rank": 0, "node_id": "n1"}, {"rank": 1, "node_id": "n2"}],
    "dra": [
        {"rank": 0, "device_uuid": "GPU-0a1b", "node_id": "n1"},
        {"rank": 1, "device_uuid": "GPU-2c3d"},
    ],
}
EXPOSED: dict[str, dict[str, Any]] = {
    "load_balancer": {"class_name": "test/balancer", "annotations": {"test/scheme": "internal"}},
    "ingress": {"host": "chat.test", "class_name": "test", "tls_secret": "chat-tls"},
    "gateway": {"host": "chat.test", "class_name": "test", "client_namespace": "gateways"},
    "none": {},
}
# Everything optional switched on.
FULL: dict[str, Any] = {
    "proxy_blocks": [
        {
            "block_id": "first",
            "min_instances": 2,
            "max_instances": 5,
            "system_message": "Be brief.",
            "generation_config": {"temperature": 0.5},
            "labels": {"team": "a"},
        },
        {"block_id": "second", "min_instances": 2, "max_instances": 2, "port": 9000},
    ],
    "inference_server": {"discovery": "kubernetes", "public_host": "serve.test"},
    "session_store": {"mode": "valkey", "image": f"registry.test/valkey@{DIGEST}", "size": "1Gi"},
    "model_cache": {"mode": "own-claim", "size": "20Gi", "storage_class": "fast"},
    "timeouts": {"create_s": 60, "delete_s": 30},
    "extra_env": {"HF_ENDPOINT": "https://hub.test"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "observability": {"enabled": True},
    "priority_class": "serving",
    "image_pull_secrets": ["registry"],
}
# Everything optional switched off.
BARE: dict[str, Any] = {
    "proxy_blocks": [],
    "inference_server": {"enabled": False},
    "network_policies": {"enabled": False},
    "namespaces": {"create": False},
}


def stack(folder: Path, **changes: object) -> dict[str, Any]:
    """Two CPU ranks on the cluster `home` with every tier, with changes."""
    mapping: dict[str, Any] = {
        "deployment_name": "small",
        "nnodes": 2,
        "common_params": {"model_name": DEMO, "image": RUNNER, "request_deadline_s": 100},
        "images": IMAGES,
        "clusters": {"home": {"kubeconfig": str(write_kubeconfig(folder, "home"))}},
        "proxy_blocks": [{"block_id": "block"}],
    }
    return mapping | changes


def two_clusters(folder: Path) -> dict[str, Any]:
    """Rank 0 on `home`, rank 1 on `away`; the addresses are those of load balancers."""
    clusters = {
        name: {"kubeconfig": str(write_kubeconfig(folder, name, f"{name}.test"))}
        for name in ("home", "away")
    }
    ranks = [
        {"rank": 0, "cluster_id": "home", "advertise_address": "203.0.113.1"},
        {"rank": 1, "cluster_id": "away", "advertise_address": "203.0.113.2"},
    ]
    return stack(folder, clusters=clusters, per_rank_params=ranks, multi_cluster=True)


def vllm_stack(folder: Path, **changes: object) -> dict[str, Any]:
    """Two ranks of another engine, whose model lies where nobody can read it from here."""
    common = {"model_name": "/models/chat", "image": RUNNER, "request_deadline_s": 100}
    ranks = [
        {"rank": rank, "node_id": node, "layers": layers, "cpu": 4, "memory": "32Gi"}
        for rank, (node, layers) in enumerate((("a", "0-15"), ("b", "16-31")))
    ]
    return (
        stack(folder)
        | {
            "platform": "vllm",
            "gpu_pinning": "resource",
            "common_params": common,
            "per_rank_params": ranks,
        }
        | changes
    )


def matrix(folder: Path) -> Mapping[str, dict[str, Any]]:
    """Every kind of stack by name."""
    found = {
        "1 rank": stack(folder, nnodes=1),
        "4 ranks": stack(folder, nnodes=4),
        "bare pods": stack(folder, workload="pod"),
        "existing claim": stack(
            folder,
            model_cache={"mode": "existing-claim", "claim_name": "weights"},
            namespaces={"create": False},
        ),
        "session store elsewhere": stack(
            folder, session_store={"mode": "url", "url": "redis://store.test:6379/0"}
        ),
        "built images": stack(
            folder,
            images={"builder": "docker", "build_arguments": {"DEMO_MODEL": DEMO}},
            common_params={"model_name": DEMO, "image": "registry.test/runner:1"},
        ),
        "two clusters": two_clusters(folder),
        "prometheus operator": stack(
            folder, observability={"enabled": True, "prometheus_operator": True}
        ),
        "vllm": vllm_stack(
            folder,
            common_params={
                "model_name": "/models/chat",
                "image": RUNNER,
                "request_deadline_s": 100,
                "tensor_parallel": 2,
                "gpu_memory_utilization": 0.85,
                "extra_engine_args": ["--kv-cache-dtype", "fp8"],
            },
        ),
        "everything off": stack(folder, **BARE),
        "everything on": stack(folder, **FULL),
    }
    found |= {
        f"exposed {mode}": stack(folder, inference_server={"expose": {"mode": mode} | expose})
        for mode, expose in EXPOSED.items()
    }
    found |= {
        f"pinning {mode}": stack(folder, gpu_pinning=mode, per_rank_params=ranks)
        for mode, ranks in PINNINGS.items()
    }
    return found


NAMES = (
    "1 rank", "4 ranks", "bare pods", "existing claim", "session store elsewhere",
    "prometheus operator", "built images", "two clusters", "vllm", "everything off",
    "everything on",
    *(f"exposed {mode}" for mode in EXPOSED),
    *(f"pinning {mode}" for mode in PINNINGS),
)  # fmt: skip
