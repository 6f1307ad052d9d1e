"""Whether registries have the images that are given by digest.

The protocol: https://distribution.github.io/distribution/spec/api/
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

import httpx

from infra.inspection.architectures import image_finding
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


def check_registries(
    deployment: DeploymentConfig, architectures: Collection[str] = ()
) -> Iterator[Finding]:
    """One line per image; as `docker login` on this machine sees it, which nodes may not.
    `architectures` are the nodes', where they are known.

    None for images that are still to be built: `up` begins with their push.
    """
    if deployment.images.builder != "reference":
        return
    for name in image_names(deployment).values():
        registry = registry_of(name) or _HUB
        path, _, digest = name.removeprefix(f"{registry}/").partition("@")
        place = path.partition(":")[0]
        try:
            finding = _check(f"image {name}", registry, f"{place}/manifests/{digest}")
            if finding.level == "fine" and architectures:
                built_for = _built_for(registry, place, digest)
                finding = image_finding(finding.subject, built_for, architectures) or finding
            yield finding
        except (httpx.HTTPError, OSError, ValueError) as error:
            text = f"registry {registry} cannot be asked from here: {error or type(error).__name__}"
            yield Finding("warning", f"image {name}", text)


def _check(subject: str, registry: str, manifest: str) -> Finding:
    answer = _ask("HEAD", registry, manifest)
    if answer.is_success:
        return Finding("fine", subject, "is there")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return Finding("fault", subject, f"registry {registry} has no such image")
    text = (
        f"registry {registry} does not let you pull it ({answer.status_code}); "
        f"log in with: docker login {registry}"
    )
    return Finding("warning", subject, text)


def _built_for(registry: str, place: str, digest: str) -> set[str]:
    """The architectures of an image; none where its registry does not tell them."""
    answer = _ask("GET", registry, f"{place}/manifests/{digest}")
    manifest = answer.json() if answer.is_success else {}
    if "manifests" in manifest:
        platforms = [item.get("platform", {}) for item in manifest["manifests"]]
    elif "config" in manifest:
        answer = _ask("GET", registry, f"{place}/blobs/{manifest['config']['digest']}")
        platforms = [answer.json()] if answer.is_success else []
    else:
        platforms = []
    # What attests an image is for "unknown".
    return {item.get("architecture", "unknown") for item in platforms} - {"unknown"}


def _ask(method: str, registry: str, path: str) -> httpx.Response:
    """Answers a challenge with the credentials of `docker login`, if there are any."""
    host = _HUB_API if registry == _HUB else registry
    headers = {"Accept": _MANIFESTS}
    with httpx.Client(timeout=_TIMEOUT_S, headers=headers, follow_redirects=True) as web:
        url = f"https://{host}/v2/{path}"
        try:
            answer = web.request(method, url)
        except httpx.ConnectError:
            # As Docker does it for a registry on this machine, and for those it is told to trust.
            url = url.replace("https", "http", 1)
            answer = web.request(method, url)
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            return answer
        challenge = answer.headers.get("WWW-Authenticate", "")
        credentials = _credentials(registry)
        if challenge.lower().startswith("basic"):
            return web.request(method, url, auth=credentials) if credentials else answer
        terms = dict(_CHALLENGE.findall(challenge))
        query = {key: terms.get(key, "") for key in ("service", "scope")}
        token = web.get(terms.get("realm", ""), params=query, auth=credentials)
        if not token.is_success:
            return token
        found = token.json()
        bearer = found.get("token") or found.get("access_token", "")
        return web.request(method, url, headers={"Authorization": f"Bearer {bearer}"})


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
