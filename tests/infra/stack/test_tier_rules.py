from __future__ import annotations

import pytest

from infra.stack.faults import StackConfigError
from infra.stack.file import parse_deployment
from infra.stack.tier_rules import cluster_tier_faults
from tests.infra.deployments import MINIMAL, fault_lines, parsed

DIGEST = "registry.test/valkey@sha256:" + "a" * 64


def cluster_faults(**changes: object) -> list[str]:
    return [str(fault) for fault in cluster_tier_faults(parsed(**changes))]


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
