"""A request's JSON body: read within a limit, checked against a model, every fault named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.requests import Request

from contract.faults import faults_of
from contract.near_names import unknown_field
from contract.specs import LARGEST_BODY_BYTES
from web.errors import ApiError
from web.json_text import parse_json

# pydantic makes a fault of each unknown field, and a million of those cost seconds.
MAX_KEYS = 1024
_SHOWN_FAULTS = 5


class Fields(BaseModel):
    """Base of the request models: unknown fields are refused, strings are not taken as numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, document: Any) -> Any:
        if isinstance(document, Mapping) and len(document) > MAX_KEYS:
            raise ValueError(f"{len(document)} fields, where at most {MAX_KEYS} are allowed")
        return document


def whole_number(value: Any) -> Any:
    """For a BeforeValidator: JSON has one kind of number, so that 3.0 is the integer 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Kind = TypeVar("Kind", bound=Fields)


def parse(kind: type[Kind], document: Mapping[str, Any], under: str = "") -> Kind:
    """`document` as `kind`; raises ApiError 400 with `param` the first field at fault.

    `under` is the path of `document` in the request, where it is not the whole of it.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = faults_of(error, under=under, unknown=unknown_field(kind), most=_SHOWN_FAULTS)
        first = faults[0]
        message = "; ".join(map(str, faults))
        raise ApiError(
            400, message, param=first.path, code="invalid_value", value=first.value
        ) from error


async def read_json_object(request: Request, limit: int = LARGEST_BODY_BYTES) -> dict[str, Any]:
    """The body as a dict.

    Raises ApiError (413 beyond `limit` bytes, 415, 400 for the rest) and ClientDisconnect.

    A missing content type and the ones that clients send by habit (curl's form type, text/plain)
    pass; a body that is a file does not.
    """
    _check_content_type(request)
    document = parse_json(await read_body(request, limit))
    if not isinstance(document, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(document).__name__}")
    return document


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind.startswith(("multipart/", "image/", "audio/", "video/", "application/octet-stream")):
        raise ApiError(415, f"Content-Type is {kind[:80]}; it must be application/json")


async def read_body(request: Request, limit: int) -> bytes:
    """As it was sent; raises ApiError 413 beyond `limit` bytes, ClientDisconnect."""
    too_large = f"the body is larger than {limit} bytes; send a shorter one"
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise ApiError(413, too_large, code="body_too_large", headers={"Connection": "close"})
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > limit:
            raise ApiError(413, too_large, code="body_too_large", headers={"Connection": "close"})
    return bytes(content)
