"""What a real registry says about images, with and without a login."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from infra.inspection.registry import check_registries
from infra.stack.file import parse_deployment
from tests.infra.deployments import MINIMAL
from tests.waiting import free_ports, wait_for

PASSWORD = "password-of-the-test"
NO_DIGEST = f"sha256:{'0' * 64}"
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
        wait_for(lambda: answers(port), what="registry")
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


def pushed(registry, path, config_text=b"{}"):
    """The digest of the smallest manifest that a registry takes."""
    with httpx.Client(base_url=f"http://{registry}/v2/{path}/", auth=("me", PASSWORD)) as web:
        digest = f"sha256:{hashlib.sha256(config_text).hexdigest()}"
        place = web.post("blobs/uploads/").headers["Location"]
        web.put(httpx.URL(place).copy_merge_params({"digest": digest}), content=config_text)
        kind = "application/vnd.oci.image.manifest.v1+json"
        size = len(config_text)
        part = {"mediaType": "application/octet-stream", "digest": digest, "size": size}
        config = part | {"mediaType": "application/vnd.oci.image.config.v1+json"}
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [part]}
        answer = web.put("manifests/1", json=manifest, headers={"Content-Type": kind})
        return answer.headers["Docker-Content-Digest"]


def pushed_index(registry, path, *architectures):
    """The digest of an index over images of these architectures."""
    kind = "application/vnd.oci.image.index.v1+json"
    manifests = []
    with httpx.Client(base_url=f"http://{registry}/v2/{path}/", auth=("me", PASSWORD)) as web:
        for architecture in architectures:
            text = json.dumps({"architecture": architecture, "os": "linux"}).encode()
            digest = pushed(registry, path, text)
            size = int(web.head(f"manifests/{digest}").headers["Content-Length"])
            platform = {"architecture": architecture, "os": "linux"}
            manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json"}
            manifests.append(manifest | {"digest": digest, "size": size, "platform": platform})
        index = {"schemaVersion": 2, "mediaType": kind, "manifests": manifests}
        answer = web.put("manifests/2", json=index, headers={"Content-Type": kind})
        return answer.headers["Docker-Content-Digest"]


def found(image, builder="reference", architectures=()):
    """The finding about an image, None where nothing is asked."""
    alone = {"proxy_blocks": [], "inference_server": {"enabled": False}}
    common = {"model_name": "some/model", "image": image}
    changes = {"common_params": common, "images": {"builder": builder}}
    findings = [*check_registries(parse_deployment(MINIMAL | alone | changes), architectures)]
    return (findings[0].level, findings[0].text) if findings else None


@needs_registry
def test_images_given_by_digest(registry, tmp_path):
    log_in(tmp_path, registry)
    digest = pushed(registry, "team/runner")
    assert found(f"{registry}/team/runner@{digest}") == ("fine", "is there")
    assert found(f"{registry}/team/runner:1@{digest}") == ("fine", "is there")
    missing = f"{registry}/team/runner@{NO_DIGEST}"
    assert found(missing) == ("fault", f"registry {registry} has no such image")


@needs_registry
def test_images_that_no_node_can_run(registry, tmp_path):
    log_in(tmp_path, registry)
    text = b'{"architecture": "arm64", "os": "linux"}'
    one = f"{registry}/team/one@{pushed(registry, 'team/one', text)}"
    assert found(one, architectures={"arm64"}) == ("fine", "is there")
    refusal = "is for arm64 only, and the nodes are amd64"
    assert found(one, architectures={"amd64"}) == ("fault", refusal)
    several = f"{registry}/team/two@{pushed_index(registry, 'team/two', 'amd64', 'arm64')}"
    assert found(several, architectures={"amd64", "arm64"}) == ("fine", "is there")
    level, said = found(several, architectures={"amd64", "s390x"})
    assert (level, said) == (
        "warning",
        "is for amd64, arm64 only, and there are nodes that are s390x",
    )
    # Of a registry that does not tell nothing is said.
    silent = f"{registry}/team/three@{pushed(registry, 'team/three')}"
    assert found(silent, architectures={"amd64"}) == ("fine", "is there")


@needs_registry
@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_registry_without_rights_on_it(registry, tmp_path, password):
    if password:
        log_in(tmp_path, registry, password)
    level, text = found(f"{registry}/team/runner@{NO_DIGEST}")
    assert level == "warning"
    assert "does not let you pull it (401)" in text
    assert text.endswith(f"log in with: docker login {registry}")


def test_a_registry_that_cannot_be_reached():
    (port,) = free_ports(1)
    level, text = found(f"127.0.0.1:{port}/runner@{NO_DIGEST}")
    assert level == "warning"
    assert f"registry 127.0.0.1:{port} cannot be asked from here" in text


def test_images_that_are_still_to_be_built():
    """Their push is what `up` begins with: it says in seconds what would be wrong."""
    assert found("127.0.0.1:9/runner:1", "docker") is None


class Challenge(BaseHTTPRequestHandler):
    """A registry that wants a token, and the place that gives it to user `me`."""

    def do_HEAD(self):
        if self.headers["Authorization"] == "Bearer let-me-in":
            self.send_response(200)
        else:
            realm = f"http://{self.headers['Host']}/token"
            scope = f"repository:{self.path.split('/')[2]}:pull"
            self.send_response(401)
            terms = f'Bearer realm="{realm}",service="tests",scope="{scope}"'
            self.send_header("WWW-Authenticate", terms)
        self.end_headers()

    def do_GET(self):
        basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        wanted = self.path == "/token?service=tests&scope=repository%3Arunner%3Apull"
        is_given = wanted and self.headers["Authorization"] == f"Basic {basic}"
        self.send_response(200 if is_given else 401)
        self.end_headers()
        self.wfile.write(b'{"token": "let-me-in"}' if is_given else b"")


@pytest.mark.parametrize(("password", "level"), [(PASSWORD, "fine"), ("wrong", "warning")])
def test_a_registry_that_wants_a_token(tmp_path, monkeypatch, password, level):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Challenge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        registry = f"127.0.0.1:{server.server_port}"
        log_in(tmp_path, registry, password)
        assert found(f"{registry}/runner:1@{NO_DIGEST}")[0] == level
        server.shutdown()


def test_credentials_out_of_a_helper(tmp_path, monkeypatch):
    from infra.inspection.registry import _credentials

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
