"""Kubeconfig files: the part that one cluster of the stack file needs, as contents.

Contents, because a path would be another file on the next machine that runs the stack. Pure but
for reading the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from infra.stack.config import Cluster

# Beside Pulumi.yaml: what relative paths of a stack file start from.
PROJECT_ROOT = Path(__file__).resolve().parents[2]
_FILE_KEYS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


class KubeconfigError(ValueError):
    """Not to be read, or without what is asked for: one sentence."""


@dataclass(frozen=True)
class Kubeconfig:
    """One context of a kubeconfig, with its cluster and its user; a secret."""

    context: str
    server: str
    contents: str

    @property
    def host(self) -> str:
        """The host of the API server."""
        return urlsplit(self.server).hostname or self.server


def read_kubeconfig(cluster: Cluster, folder: Path) -> Kubeconfig:
    """The context that a cluster of the stack file names, its relative paths made absolute.

    `folder` is what a relative path of the stack file starts from; without one KUBECONFIG counts,
    then ~/.kube/config. Raises KubeconfigError.
    """
    problem = "there is no kubeconfig file"
    for path in _paths(cluster, folder):
        if not path.is_file():
            problem = f"{path} is no file"
            continue
        document = _document(path)
        name = cluster.context or str(document.get("current-context") or "")
        if context := _named(document, "contexts", name).get("context"):
            return _minified(document, path, name, context)
        known = ", ".join(item["name"] for item in document.get("contexts") or [])
        problem = f"{path} has no context {name!r}; it has: {known or 'none'}"
    raise KubeconfigError(problem)


def _paths(cluster: Cluster, folder: Path) -> Iterator[Path]:
    if cluster.kubeconfig:
        yield folder / Path(cluster.kubeconfig).expanduser()
        return
    listed = [item for item in os.environ.get("KUBECONFIG", "").split(os.pathsep) if item]
    yield from map(Path, listed or [str(Path.home() / ".kube" / "config")])


def _document(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise KubeconfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KubeconfigError(f"{path} is not YAML") from error
    if not isinstance(document, dict):
        raise KubeconfigError(f"{path} is no kubeconfig")
    return document


def _named(document: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    items = document.get(kind) or []
    return next((item for item in items if item.get("name") == name), {})


def _minified(
    document: Mapping[str, Any], path: Path, name: str, context: Mapping[str, Any]
) -> Kubeconfig:
    """Other clusters' credentials are none of this deployment's business."""
    cluster = _named(document, "clusters", context.get("cluster", "")).get("cluster")
    if not cluster or not cluster.get("server"):
        raise KubeconfigError(f"{path}: context {name!r} names no cluster with a server")
    user = _named(document, "users", context.get("user", "")).get("user") or {}
    parts = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": context}],
        "clusters": [{"name": context["cluster"], "cluster": _absolute(cluster, path)}],
        "users": [{"name": context.get("user", ""), "user": _absolute(user, path)}],
    }
    return Kubeconfig(name, cluster["server"], json.dumps(parts, sort_keys=True))


def _absolute(section: Mapping[str, Any], path: Path) -> dict[str, Any]:
    files = {
        key: str(path.resolve().parent / section[key]) for key in _FILE_KEYS if section.get(key)
    }
    return {**section, **files}
