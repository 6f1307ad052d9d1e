"""Which programs are used, and what is said where they cannot be had."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests import programs
from tests.cluster import go_programs


@pytest.fixture
def nothing_built(monkeypatch, tmp_path):
    """An empty cache and an empty PATH; returns the folder on it."""
    monkeypatch.setattr(go_programs, "_CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    go_programs.find.cache_clear()
    yield tmp_path
    go_programs.find.cache_clear()


def install(folder, name, output):
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)
    return program


def test_the_command_is_of_the_version_of_the_library():
    assert go_programs.GO_PROGRAMS["pulumi"].version == f"v{version('pulumi')}"


@pytest.mark.parametrize(
    ("name", "output", "used"),
    [
        ("etcd", "etcd Version: 3.6.5", True),
        ("etcd", "etcd Version: 3.6.50", False),
        ("etcd", "etcd Version: 3.6.5-rc.1", False),
        ("kube-apiserver", "Kubernetes v1.36.3", True),
        ("kube-apiserver", "Kubernetes v1.35.3", False),
        ("pulumi", "v3.250.0", True),
        ("kwok", "kwok version v0.8.0", False),
    ],
)
def test_a_program_on_path_is_used_in_the_right_version_only(nothing_built, name, output, used):
    installed = install(nothing_built, name, output)
    assert go_programs.find(name) == (installed if used else None)


def test_the_language_host_comes_with_its_command(nothing_built):
    assert go_programs.find("pulumi-language-python") is None
    go_programs.find.cache_clear()
    install(nothing_built, "pulumi", "v3.250.0")
    host = install(nothing_built, "pulumi-language-python", "")
    assert go_programs.find("pulumi-language-python") == host


def test_a_changed_module_is_built_anew(monkeypatch, tmp_path):
    folder = tmp_path / "etcd"
    folder.mkdir()
    for name in ("go.mod", "go.sum"):
        (folder / name).write_text((go_programs._MODULES / "etcd" / name).read_text())
    program = go_programs.GO_PROGRAMS["etcd"]
    monkeypatch.setattr(go_programs, "_MODULES", tmp_path)
    before = program.built
    (folder / "go.sum").write_text("")
    assert program.built != before


def test_without_go_one_line_says_what_is_missing(nothing_built, capsys):
    assert programs.main() == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "kube-apiserver" in line]
    assert "Tests will be skipped." in line
    assert "Go 1.26 or newer" in line
    reason = "kwok missing: run `python -m tests.programs`"
    with pytest.raises(pytest.skip.Exception, match=reason):
        programs.skip_without(programs.needs("kwok").args)
