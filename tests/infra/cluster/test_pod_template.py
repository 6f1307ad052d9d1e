"""Annotations, labels, volumes and variables that the stack file gives pods."""

from __future__ import annotations

from typing import Any

import pytest

from tests.infra.program_stacks import stack
from tests.infra.recorded_program import DIGEST, run_program

TEMPLATE: dict[str, Any] = {
    "annotations": {"sidecar.istio.io/inject": "false"},
    "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
    "volumes": [
        {"name": "bundle", "mount_path": "/etc/ssl/site", "config_map": "site-bundle"},
        {"name": "scratch", "mount_path": "/mnt/scratch", "empty_dir": "1Gi", "read_only": False},
    ],
    "env_from": [{"secret": "http-proxy", "prefix": "HTTP_"}],
}


@pytest.mark.parametrize("workload", ["pod", "statefulset"])
def test_every_pod_of_every_tier_has_them(tmp_path, workload):
    own = {"pod_template": TEMPLATE}
    program = run_program(
        stack(
            tmp_path,
            **own,
            workload=workload,
            proxy_blocks=[{"block_id": "block"} | own],
            inference_server=own,
            session_store={"mode": "valkey", "image": f"registry.test/valkey@{DIGEST}"} | own,
        )
    )
    found = [(item, spec) for item, spec in program.pods() if item.short_kind != "Job"]
    assert len(found) == 5
    for item, spec in found:
        manifest = item.manifest
        template = manifest if item.short_kind == "Pod" else manifest["spec"]["template"]
        metadata = template["metadata"]
        assert TEMPLATE["annotations"].items() <= metadata["annotations"].items()
        assert TEMPLATE["labels"].items() <= metadata["labels"].items()
        if item.short_kind != "Pod":
            assert manifest["spec"]["selector"]["matchLabels"].items() <= metadata["labels"].items()
            assert "kueue.x-k8s.io/queue-name" not in manifest["metadata"]["labels"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["bundle"]["configMap"]["name"] == "site-bundle"
        assert volumes["scratch"]["emptyDir"] == {"sizeLimit": str(2**30)}
        for container in spec["containers"]:
            mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
            assert mounts["bundle"]["mountPath"] == "/etc/ssl/site"
            assert (mounts["bundle"]["readOnly"], mounts["scratch"]["readOnly"]) == (True, False)
            assert container["envFrom"] == [
                {"prefix": "HTTP_", "secretRef": {"name": "http-proxy"}}
            ]
    block = program.one("Deployment", "small-proxy-block").manifest["spec"]["template"]
    assert "splitstack.dev/spec-checksum" in block["metadata"]["annotations"]
