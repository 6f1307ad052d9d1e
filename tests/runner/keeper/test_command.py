"""Flags and environment of an engine, by the specs."""

import pytest

from contract.engine_arguments import REFUSED, refusals
from contract.specs import GroupSpec, KeeperSpec, RankPart
from runner.keeper.command import Meeting, engine_command

CONFIG = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}
GROUP = GroupSpec(
    "demo",
    "org/model",
    (RankPart((0, 5)), RankPart((5, 12))),
    max_model_len=256,
    max_concurrent_requests=4,
    load_timeout_s=90.5,
)


def command(group=GROUP, **changes):
    spec = KeeperSpec(**{"deployment_name": "demo", "rank": 0, "threads": 3, **changes})
    return engine_command(
        spec,
        group,
        folder="/models/it",
        config=CONFIG,
        meeting=Meeting("10.0.0.1", 3001),
        address="10.0.0.9",
        inherited={"PATH": "/bin", "PYTHONPATH": "/ours", "VIRTUAL_ENV": "/x", "VLLM_PORT": "1"},
    )


def option(arguments, name):
    return arguments[arguments.index(name) + 1]


def test_what_every_rank_is_told():
    arguments = command().arguments
    assert arguments[:3] == ("vllm", "serve", "/models/it")
    assert arguments[3:6] == ("--served-model-name", "demo", "org/model")
    expected = {
        "--host": "127.0.0.1",
        "--port": "8000",
        "--dtype": "float32",
        "--pipeline-parallel-size": "2",
        "--tensor-parallel-size": "1",
        "--max-model-len": "256",
        "--max-num-seqs": "4",
        "--max-num-batched-tokens": "512",
        "--nnodes": "2",
        "--node-rank": "0",
        "--master-addr": "10.0.0.1",
        "--master-port": "3001",
    }
    assert {name: option(arguments, name) for name in expected} == expected
    assert "--headless" not in arguments
    other = command(rank=1).arguments
    assert "--headless" in other
    assert option(other, "--node-rank") == "1"


def test_the_environment_is_the_engines_own():
    environment = command().environment
    assert environment["PATH"] == "/bin"
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "VLLM_PORT"} & set(environment)
    expected = {
        "VLLM_HOST_IP": "10.0.0.9",
        "VLLM_PP_LAYER_PARTITION": "5,7",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": "90",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    assert {name: environment[name] for name in expected} == expected
    named = command(interface="eth1", engine_cache="/tmp/engine").environment
    assert named["GLOO_SOCKET_IFNAME"] == named["NCCL_SOCKET_IFNAME"] == "eth1"
    assert named["VLLM_CACHE_ROOT"] == "/tmp/engine/vllm"


def test_memory_on_a_cpu_is_what_the_requests_can_fill_and_a_quarter_at_most():
    # Of 4 requests with 256 tokens, a block more each: 2 x 2 heads x 8 wide x 5 layers x 4 bytes.
    wanted = 4 * 384 * 2 * 2 * 8 * 5 * 4
    assert option(command(memory_bytes=2**33).arguments, "--kv-cache-memory-bytes") == str(wanted)
    many = GroupSpec("demo", "m", GROUP.ranks, max_model_len=100_000, max_concurrent_requests=64)
    arguments = command(many, memory_bytes=2**30).arguments
    assert option(arguments, "--kv-cache-memory-bytes") == str(2**28)


def test_a_gpu_keeps_the_checkpoints_type_and_its_share():
    arguments = command(
        device="cuda", gpu_memory_utilization=0.8, tensor_parallel=2, memory_bytes=2**33
    ).arguments
    assert option(arguments, "--dtype") == "auto"
    assert option(arguments, "--gpu-memory-utilization") == "0.8"
    assert option(arguments, "--tensor-parallel-size") == "2"
    assert "--kv-cache-memory-bytes" not in arguments
    assert not any(item.startswith("-cc") for item in arguments)


def test_further_arguments_come_last_and_say_how_it_compiles():
    arguments = command(extra_engine_args=("-cc.mode=3", "--seed", "7")).arguments
    assert arguments[-3:] == ("-cc.mode=3", "--seed", "7")
    assert "-cc.backend=eager" not in arguments
    assert "-cc.backend=eager" in command().arguments


def test_one_rank_meets_nobody():
    alone = GroupSpec("demo", "m", (RankPart((0, 12)),))
    assert "--nnodes" not in command(alone).arguments


@pytest.mark.parametrize("changes", [{}, {"device": "cuda", "gpu_memory_utilization": 0.5}])
def test_what_the_keeper_says_no_stack_file_can(changes):
    both = command(memory_bytes=2**30, rank=1, **changes).arguments
    own = [item for item in both if item.startswith("--")]
    assert {item.removeprefix("--") for item in own} <= set(REFUSED)
    assert set(refusals(own)) == set(range(len(own)))
