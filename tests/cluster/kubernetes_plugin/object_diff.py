"""What of an object changed, and whether that needs another object in its place."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pulumi.runtime.proto import provider_pb2 as wire

# Paths that the provider replaces an object for. What it misses on pods (startupProbe, envFrom,
# tolerations, topologySpreadConstraints, resourceClaims) is missed here too: the program has to ask
# for those replacements itself.
# https://github.com/pulumi/pulumi-kubernetes/blob/master/provider/pkg/provider/diff.go
_ANY_KIND = r"metadata\.(name|namespace)"
_BY_KIND = {
    "Pod": (
        r"spec\.(?!tolerations|topologySpreadConstraints|resourceClaims|activeDeadlineSeconds"
        r"|(initContainers|containers)\[\d+\]\.(startupProbe|envFrom))"
    ),
    "Deployment": r"spec\.selector",
    "StatefulSet": (
        r"spec\.(podManagementPolicy|revisionHistoryLimit|selector|serviceName"
        r"|volumeClaimTemplates)"
    ),
    "Job": r"spec\.(completions|parallelism|selector|template)",
    "PersistentVolumeClaim": r"spec\.(accessModes|selector|storageClassName|volumeName)",
    "RoleBinding": r"roleRef",
    "ClusterRoleBinding": r"roleRef",
    "Secret": r"type",
    "Service": r"spec\.clusterIP",
    "StorageClass": r"(parameters|provisioner)",
}
_CONTENT = r"(data|stringData|binaryData)"


def diff(
    olds: Mapping[str, Any], news: Mapping[str, Any], immutable: Collection[str] = ()
) -> wire.DiffResponse:
    """What has changed in the inputs of an object, and whether it can be changed in place.

    A named object goes before the one that replaces it comes. Of the kinds in `immutable` another
    content is another object.
    """
    kind = news["kind"]
    changes = dict(_changes(olds, news))
    patterns = [_ANY_KIND, _BY_KIND.get(kind), _CONTENT if kind in immutable else None]
    pattern = "|".join(filter(None, patterns))
    replaces = [path for path in changes if re.match(pattern, path)]
    detailed = {path: _property_diff(change, path in replaces) for path, change in changes.items()}
    return wire.DiffResponse(
        changes=wire.DiffResponse.DIFF_SOME if changes else wire.DiffResponse.DIFF_NONE,
        diffs=sorted({re.split(r"[.\[]", path)[0] for path in changes}),
        replaces=replaces,
        deleteBeforeReplace=bool(replaces) and _identity(olds) == _identity(news),
        detailedDiff=detailed,
        hasDetailedDiff=True,
    )


def _identity(manifest: Mapping[str, Any]) -> tuple[Any, Any]:
    metadata = manifest["metadata"]
    return metadata.get("namespace"), metadata["name"]


def _property_diff(change: str, replaces: bool) -> wire.PropertyDiff:
    kind = f"{change}_REPLACE" if replaces else change
    return wire.PropertyDiff(kind=wire.PropertyDiff.Kind.Value(kind), inputDiff=True)


def _changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, ADD | DELETE | UPDATE) of every leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(_below(path, name), old.get(name), new.get(name)) for name in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list):
        length = max(len(old), len(new))
        pairs = [
            (f"{path}[{place}]", _item(old, place), _item(new, place)) for place in range(length)
        ]
    else:
        if old != new:
            yield path, "ADD" if old is None else "DELETE" if new is None else "UPDATE"
        return
    for inner, before, after in pairs:
        yield from _changes(before, after, inner)


def _below(path: str, name: str) -> str:
    """Names with dots, such as labels', are quoted."""
    if re.fullmatch(r"[\w-]+", name):
        return f"{path}.{name}" if path else name
    return f'{path}["{name}"]'


def _item(items: list[Any], place: int) -> Any:
    return items[place] if place < len(items) else None
