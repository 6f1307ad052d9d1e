"""Which keys of a stack file an edit can change, and what each of them costs the group.

The one table of it: what the outputs of a stack keep and what the preview says follow from it. A
key that is in neither mapping belongs to the tiers in front of the ranks, or to nothing that runs:
`speed` of a rank is seen in the layers that it gets.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["free", "swap", "pod", "all pods"]
"""free: taken between two steps. swap: the pods that run load something else. pod: this rank's pod
is replaced. all pods: every rank's."""

TOKEN = "splitstack:group_token"  # noqa: S105 (a key's name)

STACK_KEYS: dict[str, Kind] = {
    "common_params.request_deadline_s": "free",
    "common_params.max_concurrent_requests": "free",
    "common_params.prefill_token_budget": "free",
    "common_params.load_timeout_s": "free",
    "timeouts.swap_drain_s": "free",
    "common_params.model_name": "swap",
    "common_params.model_revision": "swap",
    "common_params.dtype": "swap",
    "common_params.max_model_len": "swap",
    "nnodes": "swap",
    "timeouts.stall_s": "pod",
    "extra_env": "pod",
    "ca_bundle": "pod",
    "model_cache": "pod",
    "tolerations": "pod",
    "pod_template": "pod",
    "priority_class": "pod",
    "image_pull_secrets": "pod",
    "runtime_class": "pod",
    "deployment_name": "all pods",
    "common_params.image": "all pods",
    "images.builder": "all pods",
    "images.platform": "all pods",
    "images.build_arguments": "all pods",
    "common_params.master_port": "all pods",
    "platform": "all pods",
    "common_params.tensor_parallel": "all pods",
    "common_params.gpu_memory_utilization": "all pods",
    "common_params.extra_engine_args": "all pods",
    "gpu_pinning": "all pods",
    "namespace": "all pods",
    "workload": "all pods",
    TOKEN: "all pods",
}
RANK_KEYS: dict[str, Kind] = {
    "layers": "swap",
    "device_memory": "swap",
    "cpu": "pod",
    "memory": "pod",
    "node_id": "pod",
    "cluster_id": "pod",
    "nvidia_visible_devices": "pod",
    "cuda_visible_devices": "pod",
    "device_uuid": "pod",
    "device_class": "pod",
    "device_selectors": "pod",
    "placement": "pod",
    "master": "pod",
    "nccl_socket_ifname": "pod",
    "advertise_address": "pod",
}
# Another value of these wants room that the rank does not hold yet. Of numbers, a larger one.
ROOM_KEYS = frozenset(
    {"cpu", "memory", "node_id", "cluster_id", "nvidia_visible_devices", "cuda_visible_devices",
     "device_uuid", "device_class", "device_selectors", "placement",
     "master"}
)  # fmt: skip
