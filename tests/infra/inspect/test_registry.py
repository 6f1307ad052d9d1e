"""What a real registry says about images, with and without a login."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess

import httpx
import pytest

from infra.inspect.registry import check_registries
from infra.stack.file import parse_deployment
from tests.infra.deployments import MINIMAL
from tests.waiting import free_ports, wait_for

PASSWORD = "password-of-the-test"
_BCRYPT_OF_IT = "$2b$04$roU/fI0ZrNSat/watbE/juIyd0b0/gbWfYYQNwpgn/LYzhsTGKna."
needs_registry = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="Debian's docker-registry is not installed"
)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """host:port of a registry of which the user `me` may do everything, and nobody else."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (port,) = free_ports(1)
    (tmp_path / "htpasswd").write_text(f"me:{_BCRYPT_OF_IT}\n")
    configuration = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(configuration))
    with (tmp_path / "log").open("wb") as log:
        command = ["docker-registry", "serve", str(tmp_path / "registry.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(port), 20, "registry")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/").status_code == 401
    except httpx.HTTPError:
        return False


def log_in(tmp_path, registry, password=PASSWORD):
    auth = base64.b64encode(f"me:{password}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}))


def pushed(registry, path):
    """The digest of the smallest manifest that a registry takes."""
    with httpx.Client(base_url=f"http://{registry}/v2/{path}/", auth=("me", PASSWORD)) as web:
        digest = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
        place = web.post("blobs/uploads/").headers["Location"]
        web.put(httpx.URL(place).copy_merge_params({"digest": digest}), content=b"{}")
        kind = "application/vnd.oci.image.manifest.v1+json"
        part = {"mediaType": "application/octet-stream", "digest": digest, "size": 2}
        config = part | {"mediaType": "application/vnd.oci.image.config.v1+json"}
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [part]}
        answer = web.put("manifests/1", json=manifest, headers={"Content-Type": kind})
        return answer.headers["Docker-Content-Digest"]


def found(image, builder="docker", **images):
    alone = {"proxy_blocks": [], "inference_server": {"enabled": False}}
    common = {"model_name": "some/model", "image": image}
    changes = {"common_params": common, "images": {"builder": builder, **images}}
    (finding,) = check_registries(parse_deployment(MINIMAL | alone | changes))
    return finding.level, finding.text


@needs_registry
def test_a_registry_that_takes_the_image(registry, tmp_path):
    log_in(tmp_path, registry)
    assert found(f"{registry}/team/runner:1") == ("fine", f"registry {registry} takes it")
    # The question has left no upload that is half there.
    assert not list(tmp_path.glob("data/**/team/runner/_uploads/*/data"))


@needs_registry
@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_registry_without_rights_on_it(registry, tmp_path, password):
    if password:
        log_in(tmp_path, registry, password)
    level, text = found(f"{registry}/team/runner:1")
    assert level == "fault"
    assert "does not let you push it (401)" in text
    assert text.endswith(f"log in with: docker login {registry}")


@needs_registry
def test_images_given_by_digest(registry, tmp_path):
    log_in(tmp_path, registry)
    digest = pushed(registry, "team/runner")
    assert found(f"{registry}/team/runner@{digest}", "reference") == ("fine", "is there")
    missing = f"{registry}/team/runner@sha256:{'0' * 64}"
    assert found(missing, "reference") == ("fault", f"registry {registry} has no such image")


def test_a_registry_that_cannot_be_reached():
    (port,) = free_ports(1)
    level, text = found(f"127.0.0.1:{port}/runner:1")
    assert level == "warning"
    assert f"registry 127.0.0.1:{port} cannot be asked from here" in text


def test_credentials_out_of_a_helper(tmp_path, monkeypatch):
    from infra.inspect.registry import _credentials

    helper = tmp_path / "docker-credential-test"
    answer = json.dumps({"Username": "me", "Secret": PASSWORD})
    helper.write_text(
        f"#!/bin/sh\nread -r server\n[ \"$server\" = here.test ] && echo '{answer}'\n"
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "test"}))
    assert _credentials("here.test") == ("me", PASSWORD)
    assert _credentials("there.test") is None
