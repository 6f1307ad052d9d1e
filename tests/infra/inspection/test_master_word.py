"""Out of a master's topology: its reason, and the GPU of each rank in the table of pods."""

from __future__ import annotations

import pytest

from infra.inspection.master_word import RankDevice, read_word
from infra.inspection.status import ClusterStatus, PodStatus, render_cluster_status

RANK = {
    "rank": 0,
    "device_uuid": "GPU-1",
    "device_bytes": 80 * 10**9,
    "loaded": True,
    "weight_bytes": 10**9,
    "kv_bytes": 2 * 10**9,
}


def test_devices_by_rank():
    loading = RANK | {"rank": 1, "loaded": False, "weight_bytes": None, "kv_bytes": None}
    word = read_word({"state": "starting", "reason": "loads", "ranks": [RANK, loading]})
    assert (word.state, word.reason) == ("starting", "loads")
    assert word.devices[0] == RankDevice("GPU-1", 80 * 10**9, 3 * 10**9)
    assert word.devices[1].used_bytes is None


def test_another_versions_topology():
    old = {key: value for key, value in RANK.items() if not key.startswith("device")}
    word = read_word({"state": "ready", "reason": "", "ranks": [old]})
    assert word.devices[0].uuid == ""
    with pytest.raises(ValueError, match="no topology of this version"):
        read_word({"state": "ready"})


def pod(rank, **more):
    fields = ("rank", rank, "home", "splits", "node", "Running", True, 0, "")
    return PodStatus(f"small-rank-{rank}", *fields, **more)


def test_the_table_has_devices_where_there_are_any():
    pods = (
        pod(0, device="GPU-1", device_bytes=80 * 10**9, used_bytes=3 * 10**9),
        pod(1),
    )
    lines = render_cluster_status(ClusterStatus("s", "small", pods)).splitlines()
    assert lines[2].split()[-3:] == ["device", "memory", "used"]
    assert lines[3].endswith("GPU-1   80.0 GB  3.0 GB")
    assert lines[4].split()[-3:] == ["-", "-", "-"]
    lines = render_cluster_status(ClusterStatus("s", "small", pods[1:])).splitlines()
    assert lines[2].split()[-1] == "restarts"
