"""Reading a request's JSON body within a limit."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from starlette.requests import Request

from contract.specs import LARGEST_BODY_BYTES
from web.errors import ApiError


async def read_json_object(request: Request, limit: int = LARGEST_BODY_BYTES) -> dict[str, Any]:
    """The body as a dict.

    Raises ApiError (413 beyond `limit` bytes, 415, 400 for the rest) and ClientDisconnect.

    NaN and Infinity, which are not JSON, are refused, and numbers too large to be told from it. A
    missing content type and the ones that clients send by habit (curl's form type, text/plain)
    pass; a body that is a file does not.
    """
    _check_content_type(request)
    content = await _read(request, limit)
    try:
        document = json.loads(
            content.decode("utf-8"), parse_float=_finite, parse_constant=_refuse_constant
        )
        # Lone surrogates ("\ud800") are JSON but cannot be sent on as UTF-8.
        if b"\\u" in content:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error}") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ApiError(400, f"the body must be a JSON object, not {type(document).__name__}")
    return document


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind.startswith(("multipart/", "image/", "audio/", "video/", "application/octet-stream")):
        raise ApiError(415, f"Content-Type is {kind[:80]}; it must be application/json")


async def _read(request: Request, limit: int) -> bytes:
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


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
