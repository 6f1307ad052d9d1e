"""The one sentence for each mistake."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from contract.faults import MISSING, Fault, faults_of, path_of, shown_value


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    size: Annotated[int, Field(ge=1, le=8)] = 1
    kind: Literal["a", "b"] = "a"

    @field_validator("size")
    @classmethod
    def _even(cls, size: int) -> int:
        if size == 7:
            raise ValueError("must not be {seven}")
        return size


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    parts: list[Part] = []
    by_name: dict[Annotated[str, Field(max_length=3)], float] = {}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({}, "name: is required"),
        ({"name": 3}, "name = 3: must be a string"),
        ({"name": "x", "nmae": 1}, "nmae = 1: is not a field of this request"),
        ({"name": "x", "parts": [{"size": 0}]}, "parts[0].size = 0: must be at least 1"),
        ({"name": "x", "parts": [{"size": 9}]}, "parts[0].size = 9: must be at most 8"),
        ({"name": "x", "parts": [{"size": "1"}]}, "parts[0].size = '1': must be a whole number"),
        ({"name": "x", "parts": [{"size": 7}]}, "parts[0].size = 7: must not be {seven}"),
        ({"name": "x", "parts": [{"kind": "c"}]}, "parts[0].kind = 'c': must be 'a' or 'b'"),
        ({"name": "x", "by_name": {"a": "b"}}, "by_name.a = 'b': must be a number"),
        ([], "the body = []: "),
    ],
)
def test_a_mistake_has_one_sentence(document: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate(document)
    (fault,) = faults_of(raised.value)
    assert str(fault).startswith(sentence)


def test_a_fault_lies_under_the_place_of_its_document() -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate({"by_name": {"long": 1.0}})
    paths = [fault.path for fault in faults_of(raised.value, under="data.input")]
    assert paths == ["data.input.name", "data.input.by_name.long"]
    assert path_of(()) == ""
    assert path_of((), "data") == "data"
    assert len(path_of(("k" * 10_000,))) == 80


def test_a_value_is_shown_short() -> None:
    nested: list[object] = []
    for _ in range(500):
        nested = [nested]
    for value in ("x" * 10**6, [0] * 10**6, {str(i): i for i in range(10**4)}, nested):
        assert len(shown_value(value)) <= 80
    assert str(Fault("a", MISSING, "is required")) == "a: is required"
    assert str(Fault("a", None, "must be a string")) == "a = None: must be a string"


def test_of_very_many_faults_some_are_worded() -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate({"name": "x", "by_name": dict.fromkeys(map(str, range(999)), "no")})
    assert len(faults_of(raised.value)) == 999
    assert [fault.path for fault in faults_of(raised.value, most=2)] == ["by_name.0", "by_name.1"]


def test_a_document_that_is_no_json_is_not_shown() -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate_json(b"a-secret")
    (fault,) = faults_of(raised.value, whole="the file")
    assert str(fault).startswith("the file: is not JSON: ")
    assert "secret" not in str(fault)


def test_a_key_named_like_pydantics_mark_is_named() -> None:
    with pytest.raises(ValidationError) as raised:
        Whole.model_validate({"name": "x", "[key]": 1})
    assert [fault.path for fault in faults_of(raised.value)] == ["[key]"]
