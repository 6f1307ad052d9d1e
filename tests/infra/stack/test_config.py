"""The stack file's keys, types and defaults."""

import pytest

from contract.specs import GroupSpec, MasterSpec
from tests.infra.deployments import fault_lines, parsed


def test_defaults_are_those_of_the_process_contract():
    common = parsed().common_params
    assert common.max_concurrent_requests == GroupSpec.max_concurrent_requests
    assert common.request_deadline_s == GroupSpec.request_deadline_s
    assert common.master_port == MasterSpec.master_port == 3000
    assert parsed().inference_server.node_port == 31504


def test_numbers_are_accepted_where_strings_are_meant():
    deployment = parsed(
        gpu_pinning="visible-devices",
        nnodes=1,
        per_rank_params=[
            {"rank": 0, "node_id": 7, "nvidia_visible_devices": 0, "cuda_visible_devices": 0}
        ],
        cluster_id="only",
    )
    params = deployment.rank_params(0)
    assert (params.node_id, params.nvidia_visible_devices, params.physical_device) == (
        "7",
        "0",
        "0",
    )
    assert deployment.cluster_id == ["only"]
    assert deployment.cluster_of(0) == "only"


@pytest.mark.parametrize(
    ("written", "count"),
    [("24Gi", 24 * 2**30), ("80G", 80 * 10**9), ("1.5GiB", 3 * 2**29), ("512 MB", 512 * 10**6),
     (1048576, 2**20), ("1048576", 2**20)],
)  # fmt: skip
def test_bytes(written, count):
    assert parsed(per_rank_params=[{"rank": 0, "memory": written}]).rank_params(0).memory == count


@pytest.mark.parametrize("written", ["24 gigs", True, -1, 0, "", "1e9", "9" * 40, [1]])
def test_wrong_bytes(written):
    (line,) = fault_lines(per_rank_params=[{"rank": 0, "memory": written}])
    assert line.startswith(f"per_rank_params[0].memory = {written!r}"[:60])
    assert "must be" in line


@pytest.mark.parametrize(("written", "cores"), [(2, 2.0), ("500m", 0.5), (0.25, 0.25), ("3", 3.0)])
def test_cores(written, cores):
    assert parsed(per_rank_params=[{"rank": 1, "cpu": written}]).rank_params(1).cpu == cores


@pytest.mark.parametrize("written", ["two", False, -1, "0", "nan", float("inf")])
def test_wrong_cores(written):
    (line,) = fault_lines(per_rank_params=[{"rank": 0, "cpu": written}])
    assert line.startswith("per_rank_params[0].cpu = ")


@pytest.mark.parametrize(("written", "layers"), [("0-7", (0, 8)), ("0", (0, 1)), (0, (0, 1))])
def test_layers_are_inclusive(written, layers):
    deployment = parsed(per_rank_params=[{"rank": 0, "layers": written}])
    assert deployment.rank_params(0).layer_range == layers
    assert deployment.rank_params(1).layer_range is None


@pytest.mark.parametrize("written", ["7-0", "a-b", "0-", "-1", "0..7"])
def test_wrong_layers(written):
    (line,) = fault_lines(per_rank_params=[{"rank": 0, "layers": written}])
    assert line.startswith(f"per_rank_params[0].layers = {written!r}")


@pytest.mark.parametrize("name", ["Upper", "a_b", "-a", "a-", "3d", "", "a" * 64, "a.b"])
def test_deployment_name_is_a_label(name):
    (line,) = fault_lines(deployment_name=name)
    assert line.startswith(f"deployment_name = {name!r}")
    assert "DNS-1123" in line


@pytest.mark.parametrize(
    "image",
    [
        "MANAGEMENTMASTER:31280/example/split-runner:demo",
        "runner",
        "ghcr.io/a/b@sha256:" + "0" * 64,
    ],
)
def test_images(image):
    assert parsed(images={"proxy_block": image}).images.proxy_block == image


@pytest.mark.parametrize("image", ["a b", "host:port/x", "x@sha256:12", "Upper/case path"])
def test_wrong_images(image):
    (line,) = fault_lines(images={"proxy_block": image})
    assert line.startswith(f"images.proxy_block = {image!r}")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"nnodes": 0}, "nnodes = 0: must be at least 1"),
        ({"nnodes": True}, "nnodes = True: must be a number, not true or false"),
        ({"nnodes": 1.5}, "nnodes = 1.5: must be a whole number"),
        ({"nnodes": "many"}, "nnodes = 'many': must be a whole number"),
        ({"platform": "tpu"}, "platform = 'tpu': must be 'torch' or 'vllm'"),
        ({"multi_cluster": "perhaps"}, "multi_cluster = 'perhaps': must be true or false"),
        ({"common_params": []}, "common_params = []: must be a mapping"),
        ({"per_rank_params": {}}, "per_rank_params = {}: must be a list"),
        ({"proxy_blocks": [3]}, "proxy_blocks[0] = 3: must be a mapping"),
        ({"extra_env": {"A-B": "x"}},
         "extra_env.A-B = 'A-B': must be an environment variable's name"),
        ({"hub_token": "x"},
         "hub_token = 'x': unknown key; "
         "secrets are keys of their own beside splitstack:deployment"),
    ],
)  # fmt: skip
def test_faults_show_path_value_and_rule(change, line):
    assert fault_lines(**change) == [line]


def test_not_a_number_is_no_deadline():
    common = {"model_name": "m", "request_deadline_s": float("nan")}
    assert fault_lines(common_params=common) == [
        "common_params.request_deadline_s = nan: must be a finite number"
    ]


def test_names():
    deployment = parsed()
    assert deployment.rank_name(3) == "small-rank-3"
    assert deployment.rank_master_name == "small-rank-master"
    assert deployment.master_api_name == "small-master-api"


def test_arguments_of_the_chat_template_are_any_json():
    given = {"enable_thinking": False, "nested": {"a": [1, None, "x"]}}
    block = {"block_id": "b", "chat_template_kwargs": given}
    assert parsed(proxy_blocks=[block]).proxy_blocks[0].chat_template_kwargs == given
    assert parsed(proxy_blocks=[{"block_id": "b"}]).proxy_blocks[0].chat_template_kwargs == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"messages": []}, "must not hold messages, which a template gets from the server"),
        ({"x": "y" * 20_000}, "must be at most 16384 characters of JSON"),
        ({"x": float("nan")}, "must be JSON"),
        ({"x": {1, 2}}, "must be JSON"),
        ([], "must be a mapping"),
    ],
)
def test_what_no_chat_template_is_given_is_refused(given, said):
    (line,) = fault_lines(proxy_blocks=[{"block_id": "b", "chat_template_kwargs": given}])
    assert line.startswith("proxy_blocks[0].chat_template_kwargs = ")
    assert said in line
