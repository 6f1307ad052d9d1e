"""What is taken out of kubeconfig files."""

from __future__ import annotations

import json

import pytest
import yaml
from kubernetes import client, config

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


def read(cluster, folder, **outputs):
    """`outputs` are those of the one other stack that there is."""

    def outputs_of(stack):
        assert stack == "organization/infra/test"
        return outputs

    return read_kubeconfig(cluster, folder, outputs_of)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(TWO))
    return path


def test_the_current_context_and_nothing_of_the_others(file, tmp_path):
    found = read(Cluster(kubeconfig="config"), tmp_path)
    assert (found.context, found.host) == ("first", "a.test")
    contents = json.loads(found.contents)
    assert contents["current-context"] == "first"
    assert contents["contexts"] == TWO["contexts"][:1]
    assert [item["name"] for item in contents["users"]] == ["u"]
    assert "of-v" not in found.contents


def test_relative_files_become_absolute(file, tmp_path):
    contents = json.loads(read(Cluster(kubeconfig=str(file)), tmp_path).contents)
    (cluster,), (user,) = contents["clusters"], contents["users"]
    assert cluster["cluster"]["certificate-authority"] == str(tmp_path / "c" / "a")
    assert user["user"] == {"client-key": "/abs/key", "tokenFile": str(tmp_path / "token")}


def test_a_context_by_name_from_the_files_of_the_environment(file, tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{tmp_path / 'empty'}:{file}")
    found = read(Cluster(context="second"), tmp_path)
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
    found = read(Cluster(), tmp_path)
    contents = json.loads(found.contents)
    assert (found.context, found.host) == ("home", "a.test")
    assert contents["clusters"][0]["cluster"]["proxy-url"] == "p"
    user = contents["users"][0]["user"]
    assert user["client-key"] == str(tmp_path / "b" / "key")
    assert user["exec"] == plugin | {"command": str(tmp_path / "b" / "login")}
    # A plugin that is looked for in PATH keeps its name.
    second["users"][0]["user"]["exec"]["command"] = "aws"
    files[1].write_text(yaml.safe_dump(second))
    contents = json.loads(read(Cluster(), tmp_path).contents)
    assert contents["users"][0]["user"]["exec"]["command"] == "aws"


def test_a_pod_without_files_is_its_own_account(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(kubeconfig, "_ACCOUNT", tmp_path)
    with pytest.raises(KubeconfigError, match="none is no file"):
        read(Cluster(), tmp_path)
    (tmp_path / "token").write_text("secret")
    found = read(Cluster(), tmp_path)
    assert found.server == "https://[fd00::1]:443"
    user = json.loads(found.contents)["users"][0]["user"]
    assert user == {"tokenFile": str(tmp_path / "token")}


def test_the_users_own_file_is_the_last_resort(file, tmp_path, monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    file.rename(tmp_path / ".kube" / "config")
    assert read(Cluster(), tmp_path).host == "a.test"


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
        ({"kubeconfig": "names"}, "names: contexts must be a list, each with name and context"),
        ({"kubeconfig": "text"}, "text: users must be a list, each with name and user"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(file, tmp_path, cluster, told):
    (tmp_path / "list").write_text("[]")
    (tmp_path / "torn").write_text("{")
    (tmp_path / "names").write_text("contexts: [first]")
    (tmp_path / "text").write_text("users: {u: {}}")
    with pytest.raises(KubeconfigError, match=told):
        read(Cluster(**cluster), tmp_path)


@pytest.mark.parametrize("written", [yaml.safe_dump, json.dumps, dict])
def test_an_output_of_another_stack(tmp_path, written):
    """As text or as a mapping, whatever made the cluster; paths start from the project."""
    cluster = Cluster(kubeconfig_stack="organization/infra/test", kubeconfig_output="config")
    found = read(cluster, tmp_path, config=written(TWO))
    assert (found.context, found.host) == ("first", "a.test")
    user = json.loads(found.contents)["users"][0]["user"]
    assert user == {"client-key": "/abs/key", "tokenFile": str(tmp_path / "token")}
    second = cluster.model_copy(update={"context": "second"})
    assert read(second, tmp_path, config=written(TWO)).host == "fd00::1"


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ({"other": 1}, "there is no output kubeconfig of stack organization/infra/test; it has: o"),
        ({"kubeconfig": "{"}, "output kubeconfig of stack organization/infra/test is not YAML"),
        ({"kubeconfig": [1]}, "output kubeconfig of stack organization/infra/test is no kubeconf"),
        ({"kubeconfig": {"contexts": []}}, "has no context ''; it has: none"),
    ],
)
def test_an_output_that_cannot_be_used(tmp_path, outputs, told):
    with pytest.raises(KubeconfigError, match=told):
        read(Cluster(kubeconfig_stack="organization/infra/test"), tmp_path, **outputs)


def test_a_proxy_and_a_plugin_reach_who_asks_the_cluster(tmp_path):
    """What the program hands to the provider is what the client of Kubernetes takes, too."""
    script = tmp_path / "login"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "of-the-plugin"},
    }
    script.write_text(f"#!/bin/sh\ntest \"$REGION\" = here && echo '{json.dumps(credential)}'\n")
    script.chmod(0o755)
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "./login",
        "env": [{"name": "REGION", "value": "here"}],
        "interactiveMode": "Never",
    }
    server = {"server": "https://a.test", "proxy-url": "http://proxy.test:3128"}
    document = {
        "current-context": "home",
        "contexts": [{"name": "home", "context": {"cluster": "a", "user": "u"}}],
        "clusters": [{"name": "a", "cluster": server}],
        "users": [{"name": "u", "user": {"exec": plugin}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    found = read(Cluster(kubeconfig="config"), tmp_path)
    configuration = client.Configuration()
    config.load_kube_config_from_dict(
        json.loads(found.contents), client_configuration=configuration
    )
    assert configuration.proxy == "http://proxy.test:3128"
    assert list(configuration.api_key.values()) == ["Bearer of-the-plugin"]
