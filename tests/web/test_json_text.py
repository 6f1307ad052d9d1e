"""Bodies that would hold up whoever parses them are refused before that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from web.errors import ApiError
from web.json_text import MAX_DIGITS, MAX_KEYS, MAX_VALUES, parse_json


def refusal(content: bytes) -> ApiError:
    with pytest.raises(ApiError) as refused:
        parse_json(content)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize("value", ["1", '"a"', "{}", "[]", '{"a": "b"}', "1.5e3", '"\\",\\\\"'])
def test_a_million_values_are_too_many(value: str) -> None:
    content = f'{{"n": [1, {{}}], "messages": [{",".join([value] * 1_000_000)}]}}'.encode()
    assert str(refusal(content)).startswith(f"messages: the body has more than {MAX_VALUES} values")
    assert refusal(content).body["error"]["param"] == "messages"


@pytest.mark.parametrize("broken", ["", "]", "x", '"', '"\\'])
def test_what_is_no_json_is_counted_too(broken: str) -> None:
    refusal(b"[" + b"1," * MAX_VALUES + broken.encode())


def test_as_many_values_as_are_allowed_pass() -> None:
    ids = list(range(MAX_VALUES - 10))
    assert parse_json(json.dumps({"prompt": ids}).encode()) == {"prompt": ids}


@pytest.mark.parametrize("separator", [":", " : "])
def test_more_keys_than_any_request_has(separator: str) -> None:
    def body(number: int) -> bytes:
        keys = ",".join(f'"{place}"{separator}"a:b"' for place in range(number))
        return b'{"metadata": {%s}}' % keys.encode()

    assert f"metadata: the body has more than {MAX_KEYS} keys" in str(refusal(body(MAX_KEYS)))
    of_the_body = b'{"n": 1, %s' % body(MAX_KEYS).partition(b": {")[2]
    assert refusal(of_the_body).body["error"]["param"] is None
    assert len(parse_json(body(MAX_KEYS - 2))["metadata"]) == MAX_KEYS - 2


@pytest.mark.parametrize(
    "text", [', [{"', "\\", '\\"', '",', "\u00e9,", "9" * 100 + " ,", "\U0001f600,{", '":']
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_text_may_have_any_number_of_anything(text: str, ascii_only: bool) -> None:
    document = {"prompt": text * MAX_VALUES, "n": 1}
    assert parse_json(json.dumps(document, ensure_ascii=ascii_only).encode()) == document


@pytest.mark.parametrize("number", ["9" * MAX_DIGITS, "-" + "9" * (MAX_DIGITS - 1), "1.5e3"])
def test_long_numbers(number: str) -> None:
    assert parse_json(f"[{number}]".encode()) == [json.loads(number)]
    many = f"[{number.replace('9', '9' * 60)}, 1]".encode()
    if "9" in number:
        assert f"at most {MAX_DIGITS}" in str(refusal(many))


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"a": ["x"] * 5 + ["\ud800"] + ["\udfff"] * 4}, "a[5]"),
        ({"a": [{"b": "x"}, {"b": ["\U0001f600", "\udc00"]}]}, "a[1].b[1]"),
        ({"a": {"b": 1, "\ud800": 2}}, "a"),
        ({"\ud800": 2}, "the body"),
        ("\ud800", "the body"),
    ],
)
def test_the_first_half_of_a_surrogate_pair_is_named(document: Any, path: str) -> None:
    assert str(refusal(json.dumps(document).encode())).startswith(f"{path}: must be text")
