"""The ranks of a split model: devices, caches, and what the stack file gives them."""

from __future__ import annotations

import pytest

from tests.infra.program_stacks import PINNINGS, stack
from tests.infra.recorded_program import API_KEYS, Program, run_program


def rank_pod(program: Program, rank: int) -> dict:
    return dict(program.rank_pod(rank))


def stage(program: Program, rank: int) -> dict:
    return rank_pod(program, rank)["containers"][-1]


def environment(container: dict) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def nodes(spec: dict) -> list[str]:
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    (expression,) = term["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("kubernetes.io/hostname", "In")
    return expression["values"]


def pinned(folder, mode: str, **changes: object) -> Program:
    return run_program(stack(folder, gpu_pinning=mode, per_rank_params=PINNINGS[mode], **changes))


def test_visible_devices(tmp_path):
    program = pinned(tmp_path, "visible-devices")
    for rank, devices, ordinal in ((0, "0,1", "1"), (1, "0", "0")):
        spec, variables = rank_pod(program, rank), environment(stage(program, rank))
        assert variables["NVIDIA_VISIBLE_DEVICES"] == devices
        assert variables["CUDA_VISIBLE_DEVICES"] == ordinal
        assert spec["runtimeClassName"] == "nvidia"
        assert nodes(spec) == ["n1"]
        assert "nvidia.com/gpu" not in stage(program, rank)["resources"]["limits"]
    master = rank_pod(program, 0)["containers"][0]
    assert environment(master)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert any("does not account" in message for message in program.messages)


def test_devices_of_the_plugin(tmp_path):
    program = pinned(tmp_path, "resource")
    for rank in range(2):
        spec, container = rank_pod(program, rank), stage(program, rank)
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert nodes(spec) == [f"n{rank + 1}"]
        assert "runtimeClassName" not in spec
        assert (
            not {"NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"} & environment(container).keys()
        )
    master = rank_pod(program, 0)["containers"][0]
    assert "nvidia.com/gpu" not in master["resources"]["limits"]


def test_devices_by_claim(tmp_path):
    program = pinned(tmp_path, "dra")
    for rank, uuid in ((0, "GPU-0a1b"), (1, "GPU-2c3d")):
        spec = rank_pod(program, rank)
        name = f"small-rank-{rank}-gpu"
        assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": name}]
        assert stage(program, rank)["resources"]["claims"] == [{"name": "gpu"}]
        template = program.one("ResourceClaimTemplate", name)
        (request,) = template.manifest["spec"]["spec"]["devices"]["requests"]
        assert request["exactly"]["deviceClassName"] == "gpu.nvidia.com"
        (selector,) = request["exactly"]["selectors"]
        expression = f'device.attributes["gpu.nvidia.com"].uuid == "{uuid}"'
        assert selector == {"cel": {"expression": expression}}
        assert template.replace_on_changes == ("spec",)
    assert nodes(rank_pod(program, 0)) == ["n1"]
    assert "affinity" not in rank_pod(program, 1)
    assert "claims" not in rank_pod(program, 0)["containers"][0]["resources"]


def test_another_device_replaces_the_claim_and_its_rank(tmp_path):
    before = pinned(tmp_path, "dra")
    ranks = [dict(params) for params in PINNINGS["dra"]]
    ranks[1]["device_uuid"] = "GPU-4e5f"
    after = run_program(stack(tmp_path, gpu_pinning="dra", per_rank_params=ranks))
    assert before.outputs["spec_hash"] == after.outputs["spec_hash"]
    triggers = [
        [program.rank(rank).replacement_trigger for program in (before, after)] for rank in range(2)
    ]
    assert triggers[0][0] == triggers[0][1]
    assert triggers[1][0] != triggers[1][1]
    templates = [
        program.one("ResourceClaimTemplate", "small-rank-1-gpu").manifest["spec"]
        for program in (before, after)
    ]
    assert templates[0] != templates[1]


def test_ranks_on_cpu(tmp_path):
    program = pinned(tmp_path, "none")
    for rank in range(2):
        assert environment(stage(program, rank))["NVIDIA_VISIBLE_DEVICES"] == "void"
    limits = stage(program, 1)["resources"]["limits"]
    assert limits == {"cpu": "500m", "memory": str(3 * 2**30)}
    assert stage(program, 0)["resources"]["limits"]["cpu"] == "1"


@pytest.mark.parametrize(
    ("cache", "source"),
    [
        ({"mode": "empty-dir"}, {"emptyDir": {"sizeLimit": str(4 * 2**30)}}),
        ({"mode": "empty-dir", "size": "20Gi"}, {"emptyDir": {"sizeLimit": str(20 * 2**30)}}),
        (
            {"mode": "existing-claim", "claim_name": "weights"},
            {"persistentVolumeClaim": {"claimName": "weights"}},
        ),
        (
            {
                "mode": "existing-claim",
                "claim_name": "weights",
                "sub_path": "a/b",
                "read_only": True,
            },
            {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}},
        ),
        (
            {"mode": "own-claim", "size": "20Gi", "storage_class": "fast"},
            {"persistentVolumeClaim": {"claimName": "small-rank-1-models"}},
        ),
        (
            {"mode": "shared-claim", "size": "20Gi", "storage_class": "fast"},
            {"persistentVolumeClaim": {"claimName": "small-models"}},
        ),
        (
            {"mode": "host-path", "host_path": "/mnt/nvme/models"},
            {"hostPath": {"path": "/mnt/nvme/models", "type": "Directory"}},
        ),
    ],
)
def test_model_cache(tmp_path, cache, source):
    create = cache["mode"] not in ("existing-claim", "host-path")
    program = run_program(stack(tmp_path, model_cache=cache, namespaces={"create": create}))
    volumes = {volume.pop("name"): volume for volume in rank_pod(program, 1)["volumes"]}
    assert volumes["model-cache"] == source
    mounts = {mount["name"]: mount for mount in stage(program, 1)["volumeMounts"]}
    read_only = cache.get("read_only", False)
    assert mounts["model-cache"]["readOnly"] is read_only
    assert mounts["model-cache"].get("subPath", "") == cache.get("sub_path", "")
    home = environment(stage(program, 1))["HF_HOME"]
    assert home == ("/tmp/huggingface" if read_only else "/var/cache/splitstack/huggingface")
    claims = program.of_kind("PersistentVolumeClaim")
    assert len(claims) == {"own-claim": 2, "shared-claim": 1}.get(cache["mode"], 0)
    for claim in claims:
        spec = claim.manifest["spec"]
        shared = cache["mode"] == "shared-claim"
        assert spec["accessModes"] == ["ReadWriteMany" if shared else "ReadWriteOnce"]
        assert spec["resources"]["requests"]["storage"] == str(20 * 2**30)
        assert spec["storageClassName"] == "fast"


def test_an_empty_dir_asks_for_half_of_its_limit(tmp_path):
    """Which is for another model beside the one that serves."""
    for cache, disk in (({}, 2), ({"size": "20Gi"}, 10)):
        resources = stage(run_program(stack(tmp_path, model_cache=cache)), 1)["resources"]
        assert resources["requests"].pop("ephemeral-storage") == str(disk * 2**30)
        assert resources["requests"] == resources["limits"]
    claim = {"mode": "own-claim", "size": "20Gi"}
    requests = stage(run_program(stack(tmp_path, model_cache=claim)), 1)["resources"]["requests"]
    assert "ephemeral-storage" not in requests


def test_what_the_stack_file_gives_to_rank_pods(tmp_path):
    program = run_program(
        stack(
            tmp_path,
            extra_env={"HF_ENDPOINT": "https://hub.test", "HF_HOME": "/elsewhere"},
            tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            priority_class="serving",
            image_pull_secrets=["registry"],
        )
    )
    spec = rank_pod(program, 0)
    for container in spec["containers"]:
        variables = environment(container)
        assert variables["HF_ENDPOINT"] == "https://hub.test"
        assert variables["HF_HOME"] == "/elsewhere"
    toleration = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert spec["tolerations"] == [toleration]
    assert spec["priorityClassName"] == "serving"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_a_hub_token_is_a_file(tmp_path):
    without = run_program(stack(tmp_path))
    assert "HF_TOKEN_PATH" not in environment(stage(without, 0))
    secrets = {"group_token": "t" * 32, "hub_token": "h"}
    program = run_program(stack(tmp_path), secrets={**secrets, "api_keys": API_KEYS})
    assert program.one("Secret", "small-ranks").properties["stringData"] == secrets
    for container in rank_pod(program, 0)["containers"]:
        assert environment(container)["HF_TOKEN_PATH"] == "/run/secrets/splitstack/hub_token"


def test_credentials_of_a_bucket_are_a_file(tmp_path):
    secrets = {"group_token": "t" * 32, "s3_credentials": "[default]", "api_keys": API_KEYS}
    program = run_program(stack(tmp_path), secrets=secrets)
    assert program.one("Secret", "small-ranks").properties["stringData"] == {
        "group_token": "t" * 32,
        "s3_credentials": "[default]",
    }
    for container in rank_pod(program, 0)["containers"]:
        file = environment(container)["AWS_SHARED_CREDENTIALS_FILE"]
        assert file == "/run/secrets/splitstack/s3_credentials"


def test_ranks_may_not_use_the_cluster(tmp_path):
    program = run_program(stack(tmp_path))
    assert rank_pod(program, 0)["serviceAccountName"] == "small-rank"
    assert rank_pod(program, 0)["automountServiceAccountToken"] is False
    account = program.one("ServiceAccount", "small-rank").manifest
    assert account["automountServiceAccountToken"] is False
