"""Foreign JSON, parsed within bounds: a hostile body must not hold up the requests beside it.

json.loads, json.dumps and whoever reads the result hold the event loop for as long as there are
values, so what has more than any request needs is refused before it is parsed.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from contract.faults import path_of
from web.errors import ApiError

# Of one body; one of so many takes tens of milliseconds. As ids, twice the longest usual context.
MAX_VALUES = 262_144
# Of all its objects together; a key takes ten times as long as a number. As many messages as are
# allowed have so many.
MAX_KEYS = 65_536
# Of a whole number; Python needs the square of them in time. 64 bits have 20.
MAX_DIGITS = 64

# Everything of a string, unterminated ones too: each byte is looked at once.
_STRING = rb'"(?:[^"\\]++|\\.|\\\Z)*+"?+'
# What one more of them comes after, between strings.
_VALUES, _KEYS = b",[{", b":"


def _so_many(number: int, after: bytes) -> re.Pattern[bytes]:
    others = b'[^"%s]*+' % re.escape(after)
    one = b"(?:%s(?:%s%s)*+[%s])" % (others, _STRING, others, re.escape(after))
    return re.compile(one + b"{%d}+" % number, re.DOTALL)


_TOO_MANY = {
    (MAX_VALUES, "values", _VALUES): _so_many(MAX_VALUES, _VALUES),
    (MAX_KEYS, "keys", _KEYS): _so_many(MAX_KEYS, _KEYS),
}
# As a pattern it would be tried at each byte, for seconds.
_DIGITS = bytes(ord("0") if byte in b"0123456789" else ord(" ") for byte in range(256))
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)
_KEY = re.compile(r'\s*+,?\s*+"((?:[^"\\]|\\.)*+)"\s*+:\s*+')
# Of a body, more than a request has; and characters of one's name.
_FIELDS, _SHOWN = 256, 64
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(content: bytes) -> Any:
    """Raises ApiError 400.

    NaN and Infinity, which are not JSON, are refused, and numbers too large to be told from it;
    lone surrogates ("\\ud800") too, which are JSON but cannot be sent on as UTF-8.
    """
    _check_number(content)
    has_long_number = _LONG_NUMBER in content.translate(_DIGITS)
    try:
        document = json.loads(
            content.decode("utf-8"),
            parse_float=_finite,
            parse_int=_whole if has_long_number else None,
            parse_constant=_refuse_constant,
        )
        if _SURROGATE.search(content) and not _is_utf8(document):
            path = _surrogate_path(document)
            rule = (
                "must be text: it has half of a surrogate pair (\\ud800 to \\udfff), no character"
            )
            raise ApiError(400, f"{path or 'the body'}: {rule}", param=path or None)
    except UnicodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error}") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    return document


def _check_number(content: bytes) -> None:
    for (number, what, after), pattern in _TOO_MANY.items():
        # With those in texts, which a few megabytes of prose have too; to count them costs nothing.
        separators = sum(content.count(byte) for byte in after)
        found = pattern.match(content) if separators >= number else None
        if found is not None:
            field = _field_of(content[: found.end()].decode("utf-8", "replace"))
            rule = f"the body has more than {number} {what}; at most so many are allowed"
            said = f"{field}: {rule}" if field else rule
            advice = "send long prompts as text"
            raise ApiError(400, f"{said}: {advice}", param=field, code="too_many_values")


def _field_of(beginning: str) -> str | None:
    """The field of the body in which its `beginning` ends; None for the body itself."""
    decode, place = json.JSONDecoder().raw_decode, beginning.find("{") + 1
    for _ in range(_FIELDS):
        key = _KEY.match(beginning, place)
        if key is None:
            return None
        try:
            _, place = decode(beginning, key.end())
        except (ValueError, RecursionError):
            return key[1][:_SHOWN]
    return None


def _surrogate_path(document: Any) -> str:
    """Of the first text, or the object with the first key, that UTF-8 cannot say; it cannot say the
    key either."""
    location: list[str | int] = []
    while isinstance(document, dict | list):
        if isinstance(document, dict) and not _is_utf8(list(document)):
            break
        children = document.items() if isinstance(document, dict) else enumerate(document)
        left = list(children)
        while len(left) > 1:
            half = left[: len(left) // 2]
            left = left[len(half) :] if _is_utf8([child for _, child in half]) else half
        [(place, document)] = left
        location.append(place)
    return path_of(tuple(location))


def _is_utf8(document: Any) -> bool:
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the number {text[:40]}... has {len(text)} digits, at most {MAX_DIGITS}")
    return int(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
