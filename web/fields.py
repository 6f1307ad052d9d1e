"""A request's document checked against a pydantic model, every fault named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from contract.faults import shown_value
from web.errors import ApiError

# pydantic makes a fault of each unknown field, and a million of those cost seconds.
MAX_KEYS = 1024


class Fields(BaseModel):
    """Base of the request models: unknown fields are refused, strings are not taken as numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, document: Any) -> Any:
        if isinstance(document, Mapping) and len(document) > MAX_KEYS:
            raise ValueError(f"{len(document)} fields, where at most {MAX_KEYS} are allowed")
        return document


Kind = TypeVar("Kind", bound=Fields)


def parse(kind: type[Kind], document: Mapping[str, Any], under: str = "") -> Kind:
    """`document` as `kind`; raises ApiError 400 with `param` the first field at fault.

    `under` is the path of `document` in the request, where it is not the whole of it.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        first = faults[0]
        message = "; ".join(_fault(fault, under) for fault in faults[:5])
        param = _path(first["loc"], under)
        if first["type"] == "missing":
            raise ApiError(400, message, param=param, code="invalid_value") from error
        raise ApiError(
            400, message, param=param, code="invalid_value", value=first["input"]
        ) from error


def _fault(fault: Any, under: str) -> str:
    path = _path(fault["loc"], under)
    if fault["type"] == "missing":
        return f"{path}: is required"
    if fault["type"] == "extra_forbidden":
        return f"{path}: is not a field of this request"
    rule = str(fault["msg"]).removeprefix("Value error, ")
    rule = rule.replace("Input should be ", "must be ", 1)
    return f"{path} = {shown_value(fault['input'])}: {rule}"


def _path(location: tuple[int | str, ...], path: str) -> str:
    for item in location:
        path += f"[{item}]" if isinstance(item, int) else f".{item}" if path else item[:80]
    return path or "the body"
