"""The engine of platform vllm on one machine: where it is refused, what is pinned, its keepers."""

import platform
import re
import shutil
from collections import namedtuple

import pytest

from infra.local import vllm_environment
from infra.local.fit import addresses, port_count
from infra.local.processes import define_processes
from infra.local.progress import Progress
from infra.local.state import StateFolder
from infra.local.vllm_environment import engine_program
from infra.plan.stack_plan import plan_stack
from infra.stack.faults import UserError
from infra.stack.file import load_stack_file
from tests.infra.deployments import LOCAL

DEPLOYMENT = load_stack_file(LOCAL, ("platform=vllm",)).deployment


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_our_own_engine_needs_no_program():
    assert engine_program(load_stack_file(LOCAL).deployment, Progress()) == ""


def test_another_kind_of_machine_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(UserError, match=r"Linux on x86-64 .* --set platform=torch"):
        engine_program(DEPLOYMENT, Progress())


def test_gpus_are_for_clusters():
    sets = ("platform=vllm", "gpu_pinning=resource", "nnodes=1")
    ranks = "per_rank_params=[{rank: 0, node_id: a}]"
    deployment = load_stack_file(LOCAL, (*sets, ranks)).deployment
    with pytest.raises(UserError, match="on CPUs only, and gpu_pinning is 'resource'"):
        engine_program(deployment, Progress())


def test_too_little_room_is_said_before_anything_is_fetched(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(UserError, match="which has 1,000 free"):
        engine_program(DEPLOYMENT, Progress())
    assert not list(tmp_path.glob("splitstack/engines/*/bin"))


def test_what_is_installed_is_not_installed_again(tmp_path):
    folder = tmp_path / "splitstack" / "engines" / f"vllm-cpu-{vllm_environment.VERSION}"
    folder.mkdir(parents=True)
    (folder / "installed").write_text(vllm_environment._digest())
    assert engine_program(DEPLOYMENT, Progress()) == str(folder / "bin" / "vllm")


def test_every_package_is_pinned_by_its_hash():
    lines = vllm_environment._PACKAGES.read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}", it) for it in pinned)
    names = [line.partition("==")[0] for line in pinned]
    assert len(set(names)) == len(names) > 100
    assert f"vllm-cpu=={vllm_environment.VERSION}" in {line.partition(" ")[0] for line in pinned}


def test_every_rank_is_a_keeper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = addresses(DEPLOYMENT, range(10_000, 10_000 + port_count(DEPLOYMENT)))
    wanted = define_processes(
        StateFolder("local"), DEPLOYMENT, plan_stack(DEPLOYMENT), places, "c", "/engines/vllm"
    )
    ranks = [item for item in wanted.definitions if item.tier == "stage"]
    assert [item.name for item in ranks] == ["keeper-0", "keeper-1"]
    assert ranks[0].url == places.master_url
    assert "--group-spec" in ranks[0].command
    assert "--group-spec" not in ranks[1].command
    for item in ranks:
        (text,) = item.files.values()
        assert '"engine": "/engines/vllm"' in text
        assert "runner.keeper" in item.command
    assert not [item for item in wanted.definitions if item.tier == "master"]
