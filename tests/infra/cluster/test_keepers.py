"""The ranks of another engine (platform vllm): one container, its folders, its ports, its file."""

from __future__ import annotations

import json

from contract.specs import KeeperSpec, parse
from tests.infra.program_stacks import DEMO, stack, vllm_stack
from tests.infra.recorded_program import Program, run_program


def keeper(program: Program, rank: int) -> dict:
    (container,) = program.rank_pod(rank)["containers"]
    assert container["name"] == "keeper"
    return dict(container)


def test_a_rank_is_its_keeper_and_probes_ask_it_alone(tmp_path):
    program = run_program(vllm_stack(tmp_path))
    first, second = (keeper(program, rank) for rank in (0, 1))
    assert first["command"][:3] == ["python", "-m", "runner.keeper"]
    assert "--group-spec" in first["command"]
    assert "--group-spec" not in second["command"]
    ports = [
        {port["name"]: port["containerPort"] for port in it["ports"]} for it in (first, second)
    ]
    assert ports == [
        {"data": 3001, "group": 3000, "http": 8080},
        {"data": 3001, "health": 8081},
    ]
    asked = [
        {
            kind: (it[kind]["httpGet"]["port"], it[kind]["httpGet"]["path"])
            for kind in ("startupProbe", "readinessProbe", "livenessProbe")
        }
        for it in (first, second)
    ]
    assert asked == [
        {
            "startupProbe": (8080, "/livez"),
            "readinessProbe": (8080, "/readyz?self"),
            "livenessProbe": (8080, "/livez"),
        },
        {
            "startupProbe": (8081, "/livez"),
            "readinessProbe": (8081, "/readyz"),
            "livenessProbe": (8081, "/livez"),
        },
    ]
    services = {item.name: item.manifest["spec"]["ports"] for item in program.of_kind("Service")}
    assert {port["targetPort"] for port in services["small-rank-master"]} == {"group", "http"}


def test_folders_that_an_engine_writes(tmp_path):
    program = run_program(vllm_stack(tmp_path))
    pod = program.rank_pod(1)
    container = keeper(program, 1)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    shared = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert shared == {"medium": "Memory", "sizeLimit": str(8 * 2**30)}
    spec = keeper_spec(program, 1)
    assert spec.engine_cache.startswith("/tmp/")
    assert "/tmp" in mounts
    assert spec.whole_shm


def keeper_spec(program: Program, rank: int) -> KeeperSpec:
    (found,) = [
        item.manifest["data"]
        for item in program.of_kind("ConfigMap")
        if item.name == f"small-rank-{rank}"
    ]
    assert set(found) == {"keeper.json"}
    return parse(found["keeper.json"].encode(), KeeperSpec, "keeper.json")


def test_its_file_says_what_the_stack_file_does(tmp_path):
    common = {
        "tensor_parallel": 2,
        "gpu_memory_utilization": 0.8,
        "extra_engine_args": ["--seed=1"],
    }
    mapping = vllm_stack(tmp_path)
    mapping["common_params"] |= common
    program = run_program(mapping)
    spec = keeper_spec(program, 1)
    assert (spec.rank, spec.device, spec.tensor_parallel) == (1, "cuda", 2)
    assert (spec.gpu_memory_utilization, spec.extra_engine_args) == (0.8, ("--seed=1",))
    assert (spec.http_port, keeper_spec(program, 0).http_port) == (8081, 8080)
    assert keeper(program, 1)["resources"]["limits"]["nvidia.com/gpu"] == "2"


def test_several_devices_of_a_rank(tmp_path):
    def ranks(**changes: object) -> list[dict]:
        return [
            {"rank": rank, "layers": layers, "cpu": 4, "memory": "32Gi", **changes}
            for rank, layers in enumerate(("0-15", "16-31"))
        ]

    shown = ranks(nvidia_visible_devices="0,1")
    for rank, node in zip(shown, "ab", strict=True):
        rank["node_id"] = node
    mapping = vllm_stack(tmp_path, gpu_pinning="visible-devices", per_rank_params=shown)
    mapping["common_params"] |= {"tensor_parallel": 2}
    variables = {it["name"]: it["value"] for it in keeper(run_program(mapping), 0)["env"]}
    assert variables["CUDA_VISIBLE_DEVICES"] == "0,1"
    claimed = ranks(device_selectors=["device.driver == 'x'"])
    program = run_program(mapping | {"gpu_pinning": "dra", "per_rank_params": claimed})
    counts = [
        item.manifest["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"]
        for item in program.of_kind("ResourceClaimTemplate")
    ]
    assert counts == [2, 2]


def test_its_ranks_reach_every_port_of_one_another_and_nobody_else_does(tmp_path):
    def rules(program: Program) -> dict:
        (policy,) = [
            item.manifest["spec"]
            for item in program.of_kind("NetworkPolicy")
            if item.manifest["metadata"]["name"].endswith("ranks")
        ]
        return policy

    policy = rules(run_program(vllm_stack(tmp_path)))
    rank = {"app.kubernetes.io/component": "rank", "app.kubernetes.io/instance": "small"}
    for way, side in (("ingress", "from"), ("egress", "to")):
        every = [rule for rule in policy[way] if not rule.get("ports")]
        assert len(every) == 1, way
        (peer,) = every[0][side]
        assert rank.items() <= peer["podSelector"]["matchLabels"].items()
    torch = rules(run_program(stack(tmp_path)))
    assert all(rule.get("ports") for way in ("ingress", "egress") for rule in torch[way])


def test_a_cpu_rank_has_room_for_the_engines_processes(tmp_path):
    torch, vllm = (
        run_program(
            stack(
                tmp_path,
                platform=platform,
                common_params={"model_name": name, "image": IMAGE},
                per_rank_params=[],
            )
        )
        for platform, name in (("torch", DEMO), ("vllm", str(model(tmp_path))))
    )
    memory = [
        int(dict(program.rank_pod(1))["containers"][-1]["resources"]["limits"]["memory"])
        for program in (torch, vllm)
    ]
    assert memory[1] >= memory[0] + 6 * 2**30


def model(folder):
    from infra.plan.model_config import _DEMO_CONFIG

    made = folder / "model"
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text(json.dumps(json.loads(_DEMO_CONFIG.read_text())))
    return made


IMAGE = "registry.test/runner@sha256:" + "1" * 64
