"""Values on the engine's wire: numbers are floats, secrets and unknown values are marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

# https://github.com/pulumi/pulumi/blob/master/sdk/go/common/resource/plugin/rpc.go
_SIGNATURE = "4dabf18193072939515e22adb298388d"
_SECRET = "1b47061264138c4ac30d75fd1eb44270"
_UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
_SECRET_CONTENT = ("data", "stringData")


def from_wire(struct: Struct) -> dict[str, Any]:
    """Plain values: secrets in the clear, whole numbers as int."""
    return {name: _plain(value) for name, value in MessageToDict(struct).items()}


def to_wire(values: Mapping[str, Any], like: Struct | None = None) -> Struct:
    """What is secret in `like` is secret again, and so is all data of a Secret."""
    marked = _marked(dict(values), MessageToDict(like) if like is not None else {})
    if values.get("kind") == "Secret":
        marked |= {name: _secret(values[name]) for name in _SECRET_CONTENT if name in values}
    struct = Struct()
    struct.update(marked)
    return struct


def has_unknown(value: Any) -> bool:
    """Whether something in it is known only when the update runs."""
    if isinstance(value, Mapping):
        return any(map(has_unknown, value.values()))
    return any(map(has_unknown, value)) if isinstance(value, list) else value == _UNKNOWN


def _secret(value: Any) -> dict[str, Any]:
    return {_SIGNATURE: _SECRET, "value": value}


def _marked(value: Any, like: Any) -> Any:
    """A list with a secret is secret as a whole: its items may have moved."""
    if isinstance(like, Mapping) and like.get(_SIGNATURE) == _SECRET:
        return _secret(value)
    if isinstance(like, list) and _has_secret(like):
        return _secret(value)
    if isinstance(value, Mapping) and isinstance(like, Mapping):
        return {name: _marked(item, like.get(name)) for name, item in value.items()}
    return value


def _has_secret(value: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get(_SIGNATURE) == _SECRET or any(map(_has_secret, value.values()))
    return isinstance(value, list) and any(map(_has_secret, value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _SIGNATURE in value:
            return _plain(value.get("value"))
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
