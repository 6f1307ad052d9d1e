"""What is taken out of kubeconfig files."""

from __future__ import annotations

import json

import pytest
import yaml

from infra.cluster import kubeconfig
from infra.cluster.kubeconfig import KubeconfigError, read_kubeconfig
from infra.stack.cluster_config import Cluster

TWO = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "first",
    "contexts": [
        {"name": "first", "context": {"cluster": "a", "user": "u", "namespace": "n"}},
        {"name": "second", "context": {"cluster": "b", "user": "v"}},
        {"name": "stranger", "context": {"cluster": "b", "user": "w"}},
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


def test_several_files_are_put_together_as_kubectl_does(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    first = {
        "contexts": [{"name": "home", "context": {"cluster": "a", "user": "u"}}],
        "clusters": [{"name": "a", "cluster": {"server": "https://a.test", "proxy-url": "p"}}],
    }
    plugin = {"command": "./login", "args": ["a"], "apiVersion": "v1"}
    second = {
        "current-context": "home",
        "clusters": [{"name": "a", "cluster": {"server": "https://other.test"}}],
        "users": [{"name": "u", "user": {"client-key": "key", "exec": plugin}}],
    }
    files = [tmp_path / "first", tmp_path / "b" / "second"]
    for path, document in zip(files, (first, second), strict=True):
        path.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("KUBECONFIG", ":".join(map(str, files)))
    found = read_kubeconfig(Cluster(), tmp_path)
    contents = json.loads(found.contents)
    assert (found.context, found.host) == ("home", "a.test")
    assert contents["clusters"][0]["cluster"]["proxy-url"] == "p"
    user = contents["users"][0]["user"]
    assert user["client-key"] == str(tmp_path / "b" / "key")
    assert user["exec"] == plugin | {"command": str(tmp_path / "b" / "login")}
    # A plugin that is looked for in PATH keeps its name.
    second["users"][0]["user"]["exec"]["command"] = "aws"
    files[1].write_text(yaml.safe_dump(second))
    contents = json.loads(read_kubeconfig(Cluster(), tmp_path).contents)
    assert contents["users"][0]["user"]["exec"]["command"] == "aws"


def test_a_pod_without_files_is_its_own_account(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(kubeconfig, "_ACCOUNT", tmp_path)
    with pytest.raises(KubeconfigError, match="none is no file"):
        read_kubeconfig(Cluster(), tmp_path)
    (tmp_path / "token").write_text("secret")
    found = read_kubeconfig(Cluster(), tmp_path)
    assert found.server == "https://[fd00::1]:443"
    user = json.loads(found.contents)["users"][0]["user"]
    assert user == {"tokenFile": str(tmp_path / "token")}


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
         "has no context 'third'; it has: first, second, stranger, broken"),
        ({"kubeconfig": "config", "context": "broken"},
         "context 'broken' names no cluster with a server"),
        ({"kubeconfig": "config", "context": "stranger"},
         "context 'stranger' names the user 'w', which is in no file; there are: u, v"),
        ({"kubeconfig": "list"}, "list is no kubeconfig"),
        ({"kubeconfig": "torn"}, "torn is not YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(file, tmp_path, cluster, told):
    (tmp_path / "list").write_text("[]")
    (tmp_path / "torn").write_text("{")
    with pytest.raises(KubeconfigError, match=told):
        read_kubeconfig(Cluster(**cluster), tmp_path)
