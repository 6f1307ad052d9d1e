"""A request's document checked against a pydantic model, every fault named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from contract.faults import faults_of
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
        faults = faults_of(error, under=under)
        first = faults[0]
        message = "; ".join(map(str, faults[:5]))
        raise ApiError(
            400, message, param=first.path, code="invalid_value", value=first.value
        ) from error
