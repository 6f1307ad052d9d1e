"""The session store's objects, and its configuration read by a real server."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from infra.cluster.session_store import authentication_lines, valkey_configuration
from tests.infra.program_stacks import DIGEST, SECRETS, stack
from tests.infra.recorded_program import API_KEYS, TOKEN, Program, run_program
from tests.programs import needs, program
from tests.waiting import free_ports, wait_for

NAME = "small-session-store"
VALKEY = {"mode": "valkey", "image": f"registry.test/valkey@{DIGEST}", "memory": "256Mi"}
WITH_PASSWORD = {
    "group_token": TOKEN,
    "api_keys": API_KEYS,
    "session_store_password": SECRETS["session_store_password"],
}
PASSWORD = 'a "quoted" pass\\word'


def declared(folder: Path, **store: Any) -> Program:
    return run_program(stack(folder, session_store=VALKEY | store), secrets=WITH_PASSWORD)


def test_a_valkey_of_the_stack(tmp_path):
    found = declared(tmp_path)
    spec = found.one("Deployment", NAME).manifest["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (container,) = spec["template"]["spec"]["containers"]
    assert container["image"] == VALKEY["image"]
    assert container["command"] == ["valkey-server", "/etc/splitstack/valkey.conf"]
    assert container["resources"]["limits"]["memory"] == str(256 * 2**20)
    assert found.one("ConfigMap", NAME).manifest["data"] == {
        "valkey.conf": valkey_configuration(256 * 2**20, with_password=True)
    }
    service = found.one("Service", NAME).manifest
    assert service["metadata"]["annotations"] == {"pulumi.com/skipAwait": "true"}
    selector = service["spec"]["selector"]
    assert selector.items() <= spec["template"]["metadata"]["labels"].items()
    assert selector["app.kubernetes.io/instance"] == "small"
    assert found.of_kind("PersistentVolumeClaim") == []


def test_its_password_lies_in_the_secret_only(tmp_path):
    found = declared(tmp_path)
    secret = found.one("Secret", NAME)
    assert set(secret.manifest["stringData"]) == {
        "session_store_password",
        "valkey-authentication.conf",
    }
    for item in found.objects:
        if item is not secret:
            assert SECRETS["session_store_password"] not in str(item.manifest)


def test_its_histories_may_outlive_its_pod(tmp_path):
    found = declared(tmp_path, size="1Gi")
    claim = found.one("PersistentVolumeClaim", NAME)
    assert claim.manifest["spec"]["resources"]["requests"]["storage"] == str(2**30)
    pod = found.one("Deployment", NAME).manifest["spec"]["template"]["spec"]
    assert {"name": "histories", "persistentVolumeClaim": {"claimName": NAME}} in pod["volumes"]


@pytest.mark.parametrize(
    "store", [{"mode": "sqlite"}, {"mode": "url", "url": "redis://store.test:6379/0"}]
)
def test_no_valkey_without_its_mode(tmp_path, store):
    found = run_program(stack(tmp_path, session_store=store))
    assert [item.name for item in found.objects if item.name == NAME] == []


@contextmanager
def served(folder: Path, password: str):
    """A real server with the rendered configuration, its paths moved below `folder`."""
    (port,) = free_ports(1)
    text = valkey_configuration(64 * 2**20, bool(password))
    moved = (
        text.replace("/data", str(folder))
        .replace("/run/secrets/splitstack", str(folder))
        .replace("port 6379", f"port {port}\nbind 127.0.0.1")
    )
    (folder / "valkey.conf").write_text(moved)
    (folder / "valkey-authentication.conf").write_text(authentication_lines(password))
    server = program("redis-server")
    assert server is not None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([server, folder / "valkey.conf"], stdout=log, stderr=log)
    try:
        with redis.Redis(port=port, password=password or None) as client:
            wait_for(lambda: _answers(client), what=f"{(folder / 'log').read_text()}")
            yield client, port
    finally:
        process.terminate()
        process.wait(60)


def _answers(client: redis.Redis) -> bool:
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


@needs("redis-server")
def test_a_real_server_takes_the_configuration_and_keeps_what_it_holds(tmp_path):
    with served(tmp_path, PASSWORD) as (client, port):
        client.set("session", "history", ex=60)
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("session")
        settings = client.config_get("maxmemory*")
        assert settings["maxmemory"] == str(32 * 2**20)
        assert settings["maxmemory-policy"] == "volatile-lru"
    with served(tmp_path, PASSWORD) as (client, _):
        assert client.get("session") == b"history"


@needs("redis-server")
def test_a_real_server_without_a_password_lets_everybody_in(tmp_path):
    with served(tmp_path, "") as (client, _):
        assert client.config_get("protected-mode") == {"protected-mode": "no"}
        assert client.set("session", "history")


@needs("redis-server")
def test_a_ping_without_the_password_still_says_that_it_lives(tmp_path):
    """What the probe relies on: a refusal is an answer, no answer is a failure."""
    with served(tmp_path, PASSWORD) as (_, port):
        asked = ["redis-cli", "-p", str(port), "ping"]
        assert subprocess.run(asked, capture_output=True, timeout=60).returncode == 0
    assert subprocess.run(asked, capture_output=True, timeout=60).returncode != 0
