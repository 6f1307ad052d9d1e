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


def from_wire(struct: Struct) -> dict[str, Any]:
    """Plain values: secrets in the clear, whole numbers as int."""
    return {name: _plain(value) for name, value in MessageToDict(struct).items()}


def to_wire(values: Mapping[str, Any], secret: frozenset[str] = frozenset()) -> Struct:
    """`secret` names the values that the engine has to encrypt."""
    struct = Struct()
    struct.update(
        {
            name: {_SIGNATURE: _SECRET, "value": value} if name in secret else value
            for name, value in values.items()
        }
    )
    return struct


def has_unknown(value: Any) -> bool:
    """Whether something in it is known only when the update runs."""
    if isinstance(value, Mapping):
        return any(map(has_unknown, value.values()))
    return any(map(has_unknown, value)) if isinstance(value, list) else value == _UNKNOWN


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if _SIGNATURE in value:
            return _plain(value.get("value"))
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
