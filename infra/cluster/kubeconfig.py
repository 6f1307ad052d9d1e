"""Kubeconfig files: the part that one cluster of the stack file needs, as contents.

Contents, because a path would be another file on the next machine that runs the stack. Pure but
for reading the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import yaml

from infra.stack.cluster_config import Cluster

# Beside Pulumi.yaml: what relative paths of a stack file start from.
PROJECT_ROOT = Path(__file__).resolve().parents[2]
Section: TypeAlias = Mapping[str, Any]

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
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


def read_kubeconfig(
    cluster: Cluster, folder: Path, outputs: Callable[[str], Mapping[str, Any]]
) -> Kubeconfig:
    """The context that a cluster of the stack file names, its relative paths made absolute.

    It is in an output of another stack, whose `outputs` are asked for by its name, or in files.
    `folder` is what a relative path starts from; without one the files of KUBECONFIG count, put
    together as kubectl does, then ~/.kube/config, and in a pod its own service account. Raises
    KubeconfigError.
    """
    if cluster.kubeconfig_stack:
        where = f"output {cluster.kubeconfig_output} of stack {cluster.kubeconfig_stack}"
        found = outputs(cluster.kubeconfig_stack)
        if found.get(cluster.kubeconfig_output) is None:
            known = ", ".join(sorted(found)) or "none"
            raise KubeconfigError(f"there is no {where}; it has: {known}")
        return given_kubeconfig(cluster, found[cluster.kubeconfig_output], where, folder)
    paths = list(_paths(cluster, folder))
    files = [path for path in paths if path.is_file()]
    if not files:
        if not cluster.kubeconfig and not cluster.context and (own := _in_cluster()):
            return own
        raise KubeconfigError(f"{paths[-1]} is no file")
    merged = _Merged()
    for path in files:
        merged.add(_document(path), str(path), path.resolve().parent)
    return _chosen(merged, cluster, ", ".join(map(str, files)))


def given_kubeconfig(
    cluster: Cluster, given: object, where: str = "it", folder: Path | None = None
) -> Kubeconfig:
    """The context that a cluster names, of a kubeconfig's contents: its text, or what that says.

    Relative paths in it start from `folder`, without one they are taken as they are. Raises
    KubeconfigError.
    """
    document = given
    if isinstance(given, str):
        try:
            document = yaml.safe_load(given)
        except yaml.YAMLError as error:
            raise KubeconfigError(f"{where} is not YAML") from error
    if not isinstance(document, Mapping):
        raise KubeconfigError(f"{where} is no kubeconfig")
    merged = _Merged()
    merged.add(document, where, folder)
    return _chosen(merged, cluster, where)


def _chosen(merged: _Merged, cluster: Cluster, where: str) -> Kubeconfig:
    name = cluster.context or merged.current
    context = merged.contexts.get(name)
    if context is None:
        known = ", ".join(merged.contexts) or "none"
        raise KubeconfigError(f"{where} has no context {name!r}; it has: {known}")
    return _minified(merged, name, context)


@dataclass
class _Merged:
    """Several files as one: of a name that several have, the first file's counts.

    https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/
    """

    current: str = ""
    contexts: dict[str, Section] = field(default_factory=dict)
    clusters: dict[str, Section] = field(default_factory=dict)
    users: dict[str, Section] = field(default_factory=dict)

    def add(self, document: Section, where: str, folder: Path | None) -> None:
        """`where` is what faults are told of; relative paths start from `folder`."""
        self.current = self.current or str(document.get("current-context") or "")
        for kind, known in (
            ("context", self.contexts),
            ("cluster", self.clusters),
            ("user", self.users),
        ):
            for name, section in _sections(document, kind, where):
                known.setdefault(name, _absolute(section, folder) if folder else dict(section))


def _sections(document: Section, kind: str, where: str) -> Iterator[tuple[str, Section]]:
    rows = document.get(f"{kind}s") or []
    for row in rows if isinstance(rows, Sequence) and not isinstance(rows, str) else [None]:
        section = (row.get(kind) or {}) if isinstance(row, Mapping) else None
        if row is None or not isinstance(section, Mapping):
            raise KubeconfigError(f"{where}: {kind}s must be a list, each with name and {kind}")
        yield str(row.get("name")), section


def _paths(cluster: Cluster, folder: Path) -> Iterator[Path]:
    if cluster.kubeconfig:
        yield folder / Path(cluster.kubeconfig).expanduser()
        return
    listed = [item for item in os.environ.get("KUBECONFIG", "").split(os.pathsep) if item]
    yield from map(Path, listed or [str(Path.home() / ".kube" / "config")])


def _document(path: Path) -> Section:
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise KubeconfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KubeconfigError(f"{path} is not YAML") from error
    if document is None:  # an empty file is one without contexts, as for kubectl
        return {}
    if not isinstance(document, dict):
        raise KubeconfigError(f"{path} is no kubeconfig")
    return document


def _minified(merged: _Merged, name: str, context: Section) -> Kubeconfig:
    """Other clusters' credentials are none of this deployment's business."""
    cluster = merged.clusters.get(context.get("cluster", ""), {})
    if not cluster.get("server"):
        raise KubeconfigError(f"context {name!r} names no cluster with a server")
    user = context.get("user", "")
    if user and user not in merged.users:
        known = ", ".join(merged.users) or "none"
        raise KubeconfigError(
            f"context {name!r} names the user {user!r}, which is in no file; there are: {known}"
        )
    return _kubeconfig(name, context, cluster, merged.users.get(user, {}))


def _kubeconfig(name: str, context: Section, cluster: Section, user: Section) -> Kubeconfig:
    parts = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": context}],
        "clusters": [{"name": context["cluster"], "cluster": cluster}],
        "users": [{"name": context.get("user", ""), "user": user}],
    }
    return Kubeconfig(name, cluster["server"], json.dumps(parts, sort_keys=True))


def _in_cluster() -> Kubeconfig | None:
    """Of the pod that this runs in; its token is read again when it has been renewed."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
    token, authority = _ACCOUNT / "token", _ACCOUNT / "ca.crt"
    if not host or not port or not token.is_file():
        return None
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    name = "in-cluster"
    return _kubeconfig(
        name,
        {"cluster": name, "user": name},
        {"server": server, "certificate-authority": str(authority)},
        {"tokenFile": str(token)},
    )


def _absolute(section: Section, folder: Path) -> dict[str, Any]:
    """A plugin's command too, unless it is to be looked for in PATH."""
    files: dict[str, Any] = {
        key: str(folder / section[key]) for key in _FILE_KEYS if section.get(key)
    }
    plugin = section.get("exec")
    if isinstance(plugin, dict) and "/" in str(plugin.get("command", "")):
        files["exec"] = plugin | {"command": str(folder / plugin["command"])}
    return {**section, **files}
