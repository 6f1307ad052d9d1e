"""Objects as the engine shows them to a policy pack: a good one, for tests to spoil."""

from __future__ import annotations

import copy
from typing import Any

from infra.policy.resources import Resource

DIGEST = "registry/runner@sha256:" + "a" * 64
GOOD_POD: dict[str, Any] = {
    "metadata": {"name": "small-rank-0", "namespace": "splits"},
    "spec": {
        "automountServiceAccountToken": False,
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {
                                    "key": "kubernetes.io/hostname",
                                    "operator": "In",
                                    "values": ["n1"],
                                }
                            ]
                        }
                    ]
                }
            }
        },
        "volumes": [{"name": "spec", "configMap": {"name": "small-group"}}],
        "containers": [
            {
                "name": "stage",
                "image": DIGEST,
                "env": [
                    {"name": "NVIDIA_VISIBLE_DEVICES", "value": "0,1"},
                    {"name": "CUDA_VISIBLE_DEVICES", "value": "1"},
                    {"name": "HF_TOKEN_PATH", "value": "/run/secrets/splitstack/hub_token"},
                    {"name": "MAX_TOKENS", "value": "12"},
                ],
                "resources": {
                    "requests": {"cpu": "1", "memory": "1Gi"},
                    "limits": {"cpu": "1", "memory": "1Gi"},
                },
            }
        ],
    },
}


def pod(name: str = "small-rank-0", **spec: Any) -> Resource:
    """A good pod with some keys of its spec replaced; None takes one out."""
    properties = copy.deepcopy(GOOD_POD)
    properties["metadata"]["name"] = name
    for key, value in spec.items():
        if value is None:
            properties["spec"].pop(key, None)
        else:
            properties["spec"][key] = value
    return Resource("kubernetes:core/v1:Pod", name, properties, "cluster-1", f"urn:{name}")


def with_container(**keys: Any) -> Resource:
    """A good pod whose container has some keys replaced; None takes one out."""
    container = copy.deepcopy(GOOD_POD["spec"]["containers"][0]) | keys
    return pod(containers=[{key: value for key, value in container.items() if value is not None}])


def with_environment(**variables: str) -> Resource:
    """A good pod whose container has just these variables."""
    return with_container(env=[{"name": key, "value": text} for key, text in variables.items()])


def on_nodes(*nodes: str) -> dict[str, Any]:
    """An affinity that requires one of these nodes."""
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    term = {"matchExpressions": [expression]}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    return {"nodeAffinity": {required: {"nodeSelectorTerms": [term]}}}


def templated(kind: str, group: str, resource: Resource) -> Resource:
    """A workload that makes such pods."""
    metadata = {"name": "workload", "namespace": "blocks"}
    template = {"metadata": {"labels": {}}, "spec": resource.properties["spec"]}
    properties = {"metadata": metadata, "spec": {"template": template}}
    return Resource(f"kubernetes:{group}:{kind}", "workload", properties, "cluster-1")
