"""What of an object changed, and whether that needs another object in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pulumi.runtime.proto import provider_pb2 as wire

# Paths that the provider replaces an object for. What it misses on pods (startupProbe, envFrom,
# tolerations, topologySpreadConstraints, resourceClaims) is missed here too: the program has to ask
# for those replacements itself.
_ANY_KIND = r"(apiVersion|kind|metadata\.(name|namespace))"
_POD_SPEC = (
    r"spec\.(?!tolerations|topologySpreadConstraints|resourceClaims|activeDeadlineSeconds"
    r"|terminationGracePeriodSeconds|(initContainers|containers)\[\d+\]\.(image$|startupProbe|envFrom))"
)
_BY_KIND = {
    "Pod": _POD_SPEC,
    "Deployment": r"spec\.selector",
    "StatefulSet": r"spec\.(serviceName|podManagementPolicy|selector|volumeClaimTemplates)",
    "PersistentVolumeClaim": r"spec\.(?!resources)",
    "RoleBinding": r"roleRef",
    "ClusterRoleBinding": r"roleRef",
    "Service": r"spec\.clusterIP",
    "StorageClass": r"(parameters|provisioner)",
}


def diff(kind: str, olds: Mapping[str, Any], news: Mapping[str, Any]) -> wire.DiffResponse:
    """Named objects go before the ones that replace them come."""
    changes = dict(_changes(olds, news))
    pattern = "|".join([_ANY_KIND, *filter(None, [_BY_KIND.get(kind)])])
    replaces = [path for path in changes if re.match(pattern, path)]
    detailed = {path: _property_diff(change, path in replaces) for path, change in changes.items()}
    return wire.DiffResponse(
        changes=wire.DiffResponse.DIFF_SOME if changes else wire.DiffResponse.DIFF_NONE,
        diffs=sorted({re.split(r"[.\[]", path)[0] for path in changes}),
        replaces=replaces,
        deleteBeforeReplace=bool(replaces),
        detailedDiff=detailed,
        hasDetailedDiff=True,
    )


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
