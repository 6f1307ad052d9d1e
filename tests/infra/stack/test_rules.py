"""Rules that join several keys."""

import pytest

from contract.models import DEMO_MODEL
from infra.stack.faults import StackConfigError
from infra.stack.file import parse_deployment, require_clusters
from infra.stack.rules import cluster_deployment_faults
from tests.infra.deployments import MINIMAL, fault_lines, parsed


def gpu(rank, **params):
    return {"rank": rank, "node_id": "node-1", "nvidia_visible_devices": str(rank)} | params


def pinned(*ranks, mode="visible-devices", **changes):
    return {"gpu_pinning": mode, "nnodes": len(ranks), "per_rank_params": list(ranks), **changes}


def test_listed_ranks_are_unique_and_below_nnodes():
    lines = fault_lines(per_rank_params=[{"rank": 1}, {"rank": 1}, {"rank": 2}])
    assert lines == [
        "per_rank_params[1].rank = 1: is listed twice: per_rank_params[0] has it too",
        "per_rank_params[2].rank = 2: must be less than nnodes (2)",
    ]


def test_unlisted_ranks_need_pinning_none():
    assert parsed(nnodes=4).rank_params(3).cpu is None
    (line,) = fault_lines(**pinned(gpu(0)) | {"nnodes": 3})
    assert line.startswith("per_rank_params: does not list ranks 1, 2; only gpu_pinning none")


@pytest.mark.parametrize(
    ("visible", "ordinal", "device"),
    [("0", "", "0"), ("3", "0", "3"), ("0,1", "1", "1"), ("2,5", "0", "2"),
     ("GPU-a1,GPU-b2", 1, "GPU-b2")],
)  # fmt: skip
def test_devices_are_renumbered_in_the_container(visible, ordinal, device):
    rank = gpu(0, nvidia_visible_devices=visible, cuda_visible_devices=ordinal)
    assert parsed(**pinned(rank)).rank_params(0).physical_device == device


@pytest.mark.parametrize(
    ("visible", "ordinal", "told"),
    [
        ("1", "0,1", "cuda_visible_devices = '0,1': ordinal 1 does not exist"),
        ("1", "1", "cuda_visible_devices = '1': ordinal 1 does not exist"),
        ("0,1", "0,1", "cuda_visible_devices = '0,1': a stage uses exactly one device"),
        ("0,1", "", "cuda_visible_devices: is required: one ordinal, 0 to 1"),
        ("0,0", "0", "nvidia_visible_devices = '0,0': lists a device twice"),
        ("all", "0", "nvidia_visible_devices = 'all': must list devices"),
        ("", "0", "nvidia_visible_devices: is required with gpu_pinning visible-devices"),
        ("0 1", "0", "nvidia_visible_devices = '0 1': must list devices"),
        ("0", "x", "cuda_visible_devices = 'x': must list CUDA ordinals"),
    ],
)
def test_wrong_devices(visible, ordinal, told):
    rank = gpu(0, nvidia_visible_devices=visible, cuda_visible_devices=ordinal)
    (line,) = fault_lines(**pinned(rank))
    assert line.startswith(f"per_rank_params[0].{told}")


def test_a_device_is_held_once():
    same = gpu(1, nvidia_visible_devices="0,1", cuda_visible_devices="0")
    assert fault_lines(**pinned(gpu(0), same)) == [
        "per_rank_params[1].nvidia_visible_devices = '0,1': "
        "rank 1 would hold device 0 of node node-1, which rank 0 holds"
    ]
    other_node = same | {"node_id": "node-2"}
    assert parsed(**pinned(gpu(0), other_node)).rank_params(1).physical_device == "0"


def test_indices_of_devices_ascend():
    """In a container they are numbered in that order, whatever order they were asked for in."""
    (line,) = fault_lines(**pinned(gpu(0, nvidia_visible_devices="10,9", cuda_visible_devices="1")))
    assert "nvidia_visible_devices = '10,9': must list indices in ascending order" in line
    parsed(**pinned(gpu(0, nvidia_visible_devices="9,10", cuda_visible_devices="1")))
    parsed(**pinned(gpu(0, nvidia_visible_devices="GPU-2,GPU-1", cuda_visible_devices="1")))


def test_a_claimed_device_is_held_once():
    ranks = [{"rank": rank, "device_uuid": "GPU-1"} for rank in range(2)]
    (line,) = fault_lines(**pinned(*ranks, mode="dra"))
    assert "rank 1 would hold device GPU-1, which rank 0 holds" in line


@pytest.mark.parametrize(
    ("mode", "rank", "told"),
    [
        ("none", {"nvidia_visible_devices": "0"}, "nvidia_visible_devices = '0': is refused"),
        ("none", {"device_memory": "1Gi"}, "device_memory = 1073741824: is refused"),
        ("resource", {"node_id": "n", "nvidia_visible_devices": "0"},
         "nvidia_visible_devices = '0': is refused with gpu_pinning resource: the device plugin"),
        ("resource", {}, "node_id: is required with gpu_pinning resource"),
        ("dra", {}, "device_uuid: is required with gpu_pinning dra"),
        ("dra", {"device_uuid": "GPU-1,GPU-2"}, "device_uuid = 'GPU-1,GPU-2': must name one"),
        ("visible-devices", {"node_id": "n", "nvidia_visible_devices": "0", "device_uuid": "GPU-1"},
         "device_uuid = 'GPU-1': is refused with gpu_pinning visible-devices"),
    ],
)  # fmt: skip
def test_each_pinning_mode_takes_its_own_keys(mode, rank, told):
    (line,) = fault_lines(**pinned({"rank": 0} | rank, mode=mode))
    assert line.startswith(f"per_rank_params[0].{told}")


def test_names_stay_within_63_characters_after_suffixes():
    assert parsed(deployment_name="a" * 45).inference_server_name == "a" * 45 + "-inference-server"
    (line,) = fault_lines(deployment_name="a" * 46)
    assert "must be at most 45 characters" in line
    (line,) = fault_lines(proxy_blocks=[{"block_id": "b" * 60}])
    assert line.startswith("proxy_blocks[0].block_id = ")


def test_every_cluster_named_is_declared():
    lines = fault_lines(
        clusters={"east": None},
        rank_0_cluster_id="west",
        cluster_id=["east", "north"],
        per_rank_params=[{"rank": 0, "cluster_id": "east"}],
    )
    assert lines == [
        "rank_0_cluster_id = 'west': is not declared in clusters (east)",
        "cluster_id[1] = 'north': is not declared in clusters (east)",
        "rank_0_cluster_id = 'west': is not in cluster_id (east, north)",
        "rank_0_cluster_id = 'west': rank 0's own cluster_id says east; they must be the same",
    ]


def test_several_clusters():
    ranks = [{"rank": 0, "cluster_id": "east"}, {"rank": 1, "cluster_id": "west"}]
    (line,) = fault_lines(per_rank_params=ranks)
    assert line.startswith("multi_cluster = False: ranks are on several clusters (east, west)")
    (line,) = fault_lines(per_rank_params=ranks, multi_cluster=True)
    assert "advertise_address for each rank (missing: 0, 1)" in line
    assert parsed(per_rank_params=ranks, multi_cluster=True, routable_pod_addresses=True)
    addressed = [item | {"advertise_address": f"10.0.0.{item['rank']}"} for item in ranks]
    assert parsed(per_rank_params=addressed, multi_cluster=True).cluster_of(1) == "west"


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (("1-3", "4-5"), "[0].layers = '1-3': rank 0 must start with layer 0"),
        (("0-3", "3-5"), "[1].layers = '3-5': must start with layer 4: rank 0 ends with layer 3"),
        (("0-3", "5-6"), "[1].layers = '5-6': must start with layer 4"),
        ((None, "0-6"), "[1].layers = '0-6': leaves no layer for each of the 1 ranks before"),
    ],
)
def test_layers_cover_each_layer_once(layers, told):
    ranks = [{"rank": rank, "layers": given or ""} for rank, given in enumerate(layers)]
    (line,) = fault_lines(per_rank_params=ranks)
    assert line.startswith(f"per_rank_params{told}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"proxy_blocks": []}, "proxy_blocks = []: must list a block"),
        ({"proxy_blocks": [{"block_id": "b"}, {"block_id": "b"}]},
         "proxy_blocks[1].block_id = 'b': is listed twice"),
        ({"proxy_blocks": [{"block_id": "b", "min_instances": 2}]},
         "proxy_blocks[0].max_instances = 1: must be at least min_instances (2)"),
        ({"model_cache": {"mode": "existing-claim"}, "namespaces": {"create": False}},
         "model_cache.claim_name = '': is required"),
        ({"model_cache": {"mode": "existing-claim", "claim_name": "weights"}},
         "model_cache.mode = 'existing-claim': existing-claim needs namespaces.create: false"),
        ({"proxy_blocks": [{"block_id": "b", "generation_config": {"temprature": 1}}]},
         "proxy_blocks[0].generation_config.temprature = 1: "),
        ({"proxy_blocks": [{"block_id": "b", "generation_config": {"top_p": 2}}]},
         "proxy_blocks[0].generation_config.top_p = 2: "),
        ({"tolerations": [{"key": "a b!", "operator": "Exists"}]},
         "tolerations[0].key = 'a b!': must be a label's or taint's key"),
        ({"model_cache": {"mode": "own-claim"}}, "model_cache.size = None: is required"),
        ({"model_cache": {"mode": "shared-claim"}}, "model_cache.size = None: is required"),
        ({"model_cache": {"mode": "host-path"}, "namespaces": {"create": False}},
         "model_cache.host_path = '': is required"),
        ({"model_cache": {"mode": "host-path", "host_path": "/models"}},
         "model_cache.mode = 'host-path': host-path needs namespaces.create: false, and namespace "
         "splits made before with Pod Security privileged"),
        ({"model_cache": {"mode": "own-claim", "size": "1Gi", "sub_path": "a"}},
         "model_cache.sub_path = 'a': is refused with mode own-claim: it is of mode existing-"),
        ({"model_cache": {"read_only": True}}, "model_cache.read_only = True: is refused with mo"),
        ({"model_cache": {"host_path": "/a"}}, "model_cache.host_path = '/a': is refused with "),
        ({"common_params": {"model_name": "https://me:secret@models.example/mine"}},
         "common_params.model_name: must be https://HOST/PATH or s3://BUCKET/PATH of a folder, "),
        ({"common_params": {"model_name": "https://models.example/mine?token=secret"}},
         "common_params.model_name: must be https://HOST/PATH or s3://BUCKET/PATH of a folder, "),
        ({"common_params": {"model_name": "http://:99999999/x"}},
         "common_params.model_name: must be https://HOST/PATH or s3://BUCKET/PATH of a folder, "),
        ({"tolerations": [{"value": "x"}]}, "tolerations[0].key = '': is required"),
        ({"common_params": {"model_name": "m", "master_port": 8080}},
         "common_params.master_port = 8080: is taken: the master's API"),
    ],
)  # fmt: skip
def test_the_other_tiers(change, told):
    (line,) = fault_lines(**change)
    assert line.startswith(told)


def test_pulumi_refuses_what_one_machine_does_not_need():
    deployment = parsed(images={"builder": "reference"}, inference_server={"node_port": 8000})
    with pytest.raises(StackConfigError) as raised:
        require_clusters(deployment)
    assert [fault.path for fault in raised.value.faults] == [
        "clusters",
        "inference_server.node_port",
        "common_params.image",
        "images.proxy_block",
        "images.inference_server",
    ]
    image = {"model_name": "m", "image": "registry.example/runner:1"}
    require_clusters(parse_deployment(MINIMAL | {"clusters": {"c": {}}, "common_params": image}))


def test_ranks_on_several_clusters_need_a_meeting_point():
    clusters = {"clusters": {"a": {}, "b": {}}, "multi_cluster": True}
    clusters["routable_pod_addresses"] = True
    image = {"model_name": "m", "image": "registry.example/runner:1"}
    ranks = [{"rank": 0, "cluster_id": "a"}, {"rank": 1, "cluster_id": "b"}]
    mapping = MINIMAL | clusters | {"common_params": image, "per_rank_params": ranks}
    with pytest.raises(StackConfigError, match="rank 0 needs advertise_address"):
        parse_deployment(mapping, on_clusters=True)
    ranks[0]["advertise_address"] = "10.0.0.1"
    assert parse_deployment(mapping, on_clusters=True).cluster_of(1) == "b"


@pytest.mark.parametrize(
    ("image", "rule"),
    [
        ("runner:1", "must begin with its registry, as in docker.io/me/runner:1"),
        ("me/runner", "must begin with its registry"),
        ("registry.example/runner@sha256:" + "0" * 64, "must not end in a digest"),
        ("", "is required: where the runner image is pushed to"),
    ],
)
def test_images_to_build_are_named_where_they_can_be_pushed(image, rule):
    common = {"model_name": "m", "image": image}
    deployment = parsed(clusters={"c": {}}, common_params=common)
    with pytest.raises(StackConfigError) as raised:
        require_clusters(deployment)
    assert [fault.path for fault in raised.value.faults] == ["common_params.image"]
    assert rule in str(raised.value)


def test_the_demo_model_is_baked_into_an_image_that_is_built():
    common = {"model_name": DEMO_MODEL, "image": "registry.example/runner:1"}

    def faults(**images: object) -> list[str]:
        deployment = parsed(clusters={"c": {}}, common_params=common, images=images)
        return [str(fault) for fault in cluster_deployment_faults(deployment)]

    (line,) = faults()
    assert line.startswith(f"images.build_arguments.DEMO_MODEL: must be {DEMO_MODEL}, the model")
    assert faults(build_arguments={"DEMO_MODEL": DEMO_MODEL}) == []


DIGEST = "registry.test/valkey@sha256:" + "a" * 64


def cluster_faults(**changes: object) -> list[str]:
    """Of the tiers in front of the ranks."""
    lines = [str(fault) for fault in cluster_deployment_faults(parsed(**changes))]
    return [line for line in lines if line.startswith(("proxy_blocks", "session_store"))]


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ({"mode": "url"}, "session_store.url = '': must be as in redis://host:6379/0"),
        ({"mode": "url", "url": "http://store"}, "session_store.url = 'http://store': must be"),
        ({"mode": "url", "url": "redis://store:99999"}, "redis://store:99999': must be as in"),
        ({"mode": "url", "url": "redis://:secret@store:1/0"}, "...@store:1/0': must not hold a"),
        ({"mode": "url", "url": "redis://u:secret@store"}, "splitstack:session_store_password"),
        ({"mode": "url", "url": "redis:/:secret@store"}, "...@store': must be as in"),
        (
            {"mode": "valkey", "image": DIGEST, "url": "redis://store"},
            "session_store.url = 'redis://store': is refused with session_store.mode valkey",
        ),
        ({"url": "redis://store"}, "is refused with session_store.mode sqlite"),
        (
            {"mode": "url", "url": "redis://store", "size": "1Gi"},
            "session_store.size = 1073741824: is refused with session_store.mode url",
        ),
        ({"mode": "memory"}, "session_store.mode = 'memory': must be 'sqlite', 'valkey' or 'url'"),
    ],
)
def test_a_wrong_session_store_is_told(store, told):
    (line,) = fault_lines(session_store=store)
    assert told in line
    assert "secret" not in line.replace("--secret", "")


@pytest.mark.parametrize(
    "store",
    [
        {"mode": "sqlite", "size": "1Gi"},
        {"mode": "valkey", "image": DIGEST},
        {"mode": "url", "url": "redis://store"},
        {"mode": "url", "url": "rediss://user@store.test:7000/3"},
        {"mode": "url", "url": "redis://[fd00::1]:6379/0"},
    ],
)
def test_a_session_store_that_can_be_had(store):
    assert cluster_faults(session_store=store) == []


def test_sqlite_is_not_shared_by_instances():
    blocks = [{"block_id": "one"}, {"block_id": "two", "max_instances": 3}]
    (line,) = cluster_faults(proxy_blocks=blocks)
    assert line.startswith("proxy_blocks[1].max_instances = 3: must be 1 with session_store.mode")
    shared = {"mode": "url", "url": "redis://store"}
    assert cluster_faults(proxy_blocks=blocks, session_store=shared) == []


def test_valkey_is_named_by_digest():
    (line,) = cluster_faults(session_store={"mode": "valkey", "image": "valkey/valkey:8"})
    assert line.startswith("session_store.image = 'valkey/valkey:8': must end in @sha256:<digest>")


def test_one_machine_asks_for_none_of_it():
    blocks = [{"block_id": "block", "max_instances": 3}]
    assert parsed(proxy_blocks=blocks, inference_server={"node_port": 8000})
    with pytest.raises(StackConfigError) as raised:
        parse_deployment(
            MINIMAL | {"proxy_blocks": blocks, "inference_server": {"node_port": 8000}},
            on_clusters=True,
        )
    paths = {fault.path for fault in raised.value.faults}
    assert {"proxy_blocks[0].max_instances", "inference_server.node_port"} <= paths


@pytest.mark.parametrize(
    ("autoscaler", "told"),
    [
        ({"cpu_percent": 0}, "autoscaler.cpu_percent = 0: must be at least 1"),
        ({"scale_up_window_s": -1}, "autoscaler.scale_up_window_s = -1: must be at least 0"),
        ({"scale_down_window_s": 3601}, "scale_down_window_s = 3601: must be at most 3600"),
    ],
)
def test_an_autoscaler_keeps_to_what_kubernetes_takes(autoscaler, told):
    (line,) = fault_lines(proxy_blocks=[{"block_id": "b", "autoscaler": autoscaler}])
    assert told in line


def test_a_protection_of_nothing():
    (line,) = fault_lines(protect=True, namespaces={"create": False})
    assert line.startswith("protect = True: has nothing to protect")
    assert parsed(protect=True).protect
    assert parsed(protect=True, namespaces={"create": False}, session_store={"size": "1Gi"})
