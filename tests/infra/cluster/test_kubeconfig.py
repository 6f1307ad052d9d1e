"""What is taken out of kubeconfig files."""

from __future__ import annotations

import json

import pytest
import yaml

from infra.cluster.kubeconfig import KubeconfigError, read_kubeconfig
from infra.stack.config import Cluster

TWO = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "first",
    "contexts": [
        {"name": "first", "context": {"cluster": "a", "user": "u", "namespace": "n"}},
        {"name": "second", "context": {"cluster": "b", "user": "v"}},
        {"name": "broken", "context": {"cluster": "none", "user": "v"}},
    ],
    "clusters": [
        {"name": "a", "cluster": {"server": "https://a.test:6443", "certificate-authority": "c/a"}},
        {"name": "b", "cluster": {"server": "https://[fd00::1]:6443"}},
    ],
    "users": [
        {"name": "u", "user": {"client-key": "/abs/key", "tokenFile": "token"}},
        {"name": "v", "user": {"token": "of-v"}},
    ],
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(TWO))
    return path


def test_the_current_context_and_nothing_of_the_others(file, tmp_path):
    found = read_kubeconfig(Cluster(kubeconfig="config"), tmp_path)
    assert (found.context, found.host) == ("first", "a.test")
    contents = json.loads(found.contents)
    assert contents["current-context"] == "first"
    assert contents["contexts"] == TWO["contexts"][:1]
    assert [item["name"] for item in contents["users"]] == ["u"]
    assert "of-v" not in found.contents


def test_relative_files_become_absolute(file, tmp_path):
    contents = json.loads(read_kubeconfig(Cluster(kubeconfig=str(file)), tmp_path).contents)
    (cluster,), (user,) = contents["clusters"], contents["users"]
    assert cluster["cluster"]["certificate-authority"] == str(tmp_path / "c" / "a")
    assert user["user"] == {"client-key": "/abs/key", "tokenFile": str(tmp_path / "token")}


def test_a_context_by_name_from_the_files_of_the_environment(file, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{file}")
    found = read_kubeconfig(Cluster(context="second"), tmp_path)
    assert (found.context, found.host) == ("second", "fd00::1")


def test_the_users_own_file_is_the_last_resort(file, tmp_path, monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    file.rename(tmp_path / ".kube" / "config")
    assert read_kubeconfig(Cluster(), tmp_path).host == "a.test"


@pytest.mark.parametrize(
    ("cluster", "told"),
    [
        ({"kubeconfig": "none"}, "none is no file"),
        ({"kubeconfig": "config", "context": "third"},
         "has no context 'third'; it has: first, second, broken"),
        ({"kubeconfig": "config", "context": "broken"},
         "context 'broken' names no cluster with a server"),
        ({"kubeconfig": "list"}, "list is no kubeconfig"),
        ({"kubeconfig": "torn"}, "torn is not YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(file, tmp_path, cluster, told):
    (tmp_path / "list").write_text("[]")
    (tmp_path / "torn").write_text("{")
    with pytest.raises(KubeconfigError, match=told):
        read_kubeconfig(Cluster(**cluster), tmp_path)
