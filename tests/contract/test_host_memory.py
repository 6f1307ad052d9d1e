"""How much of the host's memory is to be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract import host_memory

GB = 10**9


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with 8 GB available, in a cgroup with 3 GB, of which 2 GB are used."""
    (tmp_path / "meminfo").write_text(f"MemFree: 1 kB\nMemAvailable: {8 * GB // 1024} kB\n")
    (tmp_path / "memory.max").write_text(f"{3 * GB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * GB}\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 0\n")
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    return tmp_path


def test_a_limit_counts_less_what_is_used_of_it(cgroup: Path) -> None:
    assert host_memory.available_bytes() == GB


def test_files_that_were_read_are_not_used(cgroup: Path) -> None:
    (cgroup / "memory.stat").write_text(f"anon 5\ninactive_file {GB}\n")
    assert host_memory.available_bytes() == 2 * GB


def test_more_used_than_allowed_is_nothing(cgroup: Path) -> None:
    (cgroup / "memory.current").write_text(f"{4 * GB}\n")
    assert host_memory.available_bytes() == 0


@pytest.mark.parametrize("file", ["memory.max", "memory.current", "memory.stat"])
def test_without_a_limit_the_host_counts(cgroup: Path, file: str) -> None:
    (cgroup / file).unlink()
    assert host_memory.available_bytes() == 8 * GB // 1024 * 1024


def test_max_is_no_limit(cgroup: Path) -> None:
    (cgroup / "memory.max").write_text("max\n")
    assert host_memory.available_bytes() == 8 * GB // 1024 * 1024


def test_this_host_has_some() -> None:
    assert host_memory.available_bytes() > 0
