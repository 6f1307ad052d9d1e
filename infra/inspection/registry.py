"""Whether registries have the images that are given by digest.

The protocol: https://distribution.github.io/distribution/spec/api/
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx

from infra.inspection.client import Finding
from infra.stack.config import DeploymentConfig
from infra.stack.image_names import image_names, registry_of

_TIMEOUT_S = 10.0
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_HUB, _HUB_API = "docker.io", "registry-1.docker.io"
_HUB_CREDENTIALS = "https://index.docker.io/v1/"


def check_registries(deployment: DeploymentConfig) -> Iterator[Finding]:
    """One line per image; as `docker login` on this machine sees it, which nodes may not.

    None for images that are still to be built: `up` begins with their push.
    """
    if deployment.images.builder != "reference":
        return
    for name in image_names(deployment).values():
        registry = registry_of(name) or _HUB
        path, _, digest = name.removeprefix(f"{registry}/").partition("@")
        manifest = f"{path.partition(':')[0]}/manifests/{digest}"
        try:
            yield _check(f"image {name}", registry, manifest)
        except (httpx.HTTPError, OSError, ValueError) as error:
            text = f"registry {registry} cannot be asked from here: {error or type(error).__name__}"
            yield Finding("warning", f"image {name}", text)


def _check(subject: str, registry: str, manifest: str) -> Finding:
    answer = _head(registry, manifest)
    if answer.is_success:
        return Finding("fine", subject, "is there")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return Finding("fault", subject, f"registry {registry} has no such image")
    text = (
        f"registry {registry} does not let you pull it ({answer.status_code}); "
        f"log in with: docker login {registry}"
    )
    return Finding("warning", subject, text)


def _head(registry: str, manifest: str) -> httpx.Response:
    """Answers a challenge with the credentials of `docker login`, if there are any."""
    host = _HUB_API if registry == _HUB else registry
    with httpx.Client(timeout=_TIMEOUT_S, headers={"Accept": _MANIFESTS}) as web:
        url = f"https://{host}/v2/{manifest}"
        try:
            answer = web.head(url)
        except httpx.ConnectError:
            # As Docker does it for a registry on this machine, and for those it is told to trust.
            url = url.replace("https", "http", 1)
            answer = web.head(url)
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        credentials = _credentials(registry)
        if challenge.lower().startswith("basic"):
            return web.head(url, auth=credentials) if credentials else answer
        terms = dict(_CHALLENGE.findall(challenge))
        query = {key: terms.get(key, "") for key in ("service", "scope")}
        token = web.get(terms.get("realm", ""), params=query, auth=credentials)
        if not token.is_success:
            return token
        found = token.json()
        bearer = found.get("token") or found.get("access_token", "")
        return web.head(url, headers={"Authorization": f"Bearer {bearer}"})


def _credentials(registry: str) -> tuple[str, str] | None:
    """(user, password) from Docker's configuration or from the helper that it names."""
    folder = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    path = Path(folder, "config.json")
    if not path.is_file():
        return None
    configuration = json.loads(path.read_text("utf-8"))
    key = _HUB_CREDENTIALS if registry == _HUB else registry
    helper = configuration.get("credHelpers", {}).get(key) or configuration.get("credsStore")
    if helper:
        answer = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=key.encode(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if answer.returncode:
            return None
        found = json.loads(answer.stdout)
        return found["Username"], found["Secret"]
    encoded = configuration.get("auths", {}).get(key, {}).get("auth", "")
    user, colon, password = base64.b64decode(encoded).decode().partition(":")
    return (user, password) if colon else None
