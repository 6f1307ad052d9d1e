"""Simulated nodes, and GPUs that resource claims can ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GPU_DRIVER = "gpu.nvidia.com"


@dataclass(frozen=True)
class Node:
    """A node that kwok keeps ready; its pods become ready without running anything."""

    name: str
    gpus: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()
    cpu: str = "32"
    memory: str = "256Gi"

    def manifest(self) -> dict[str, Any]:
        """The Node object, with what can be allocated on it."""
        amounts = {"cpu": self.cpu, "memory": self.memory, "pods": "110"}
        amounts["ephemeral-storage"] = "1Ti"
        if self.gpus:
            amounts["nvidia.com/gpu"] = str(self.gpus)
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels | self.labels},
            "spec": {"taints": list(self.taints)},
            "status": {"allocatable": amounts, "capacity": amounts},
        }

    def resource_slice(self) -> dict[str, Any]:
        """What a GPU driver would publish for dynamic resource allocation: gpu-0, gpu-1, ..."""
        return {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": f"{self.name}-gpus"},
            "spec": {
                "driver": GPU_DRIVER,
                "nodeName": self.name,
                "pool": {"name": self.name, "generation": 1, "resourceSliceCount": 1},
                "devices": [
                    {
                        "name": f"gpu-{index}",
                        "attributes": {
                            "index": {"int": index},
                            "minor": {"int": index},
                            "uuid": {"string": f"GPU-{self.name}-{index}"},
                        },
                        "capacity": {"memory": {"value": "80Gi"}},
                    }
                    for index in range(self.gpus)
                ],
            },
        }


def device_class() -> dict[str, Any]:
    """What a GPU driver installs beside itself."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": GPU_DRIVER},
        "spec": {"selectors": [{"cel": {"expression": f"device.driver == '{GPU_DRIVER}'"}}]},
    }
