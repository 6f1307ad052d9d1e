"""What an unknown name was meant for."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from contract.faults import faults_of
from contract.near_names import OTHER_NAMES, fields_at, near, unknown_field


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    max_new_tokens: int = 1
    stop: list[str] = []


class Question(BaseModel):
    model_config = ConfigDict(extra="forbid")
    message: str = ""
    generation_config: Annotated[
        Annotated[Config, Field(description="how")] | None, BeforeValidator(lambda value: value)
    ] = None
    others: list[Config] = []
    by_name: dict[str, Config] = {}
    labels: dict[str, str] = {}


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ({"gen_params": 1}, "is not a field of this request; did you mean generation_config?"),
        ({"mesage": "x"}, "is not a field of this request; did you mean message?"),
        ({"prompt": "x"}, "is not a field of this request; did you mean message?"),
        ({"surplus": 1}, "is not a field of this request"),
        ({"x" * 10**6: 1}, "is not a field of this request"),
        (
            {"generation_config": {"max_tokens": 1}},
            "is not a field of this request; did you mean max_new_tokens?",
        ),
        ({"others": [{"stops": 1}]}, "is not a field of this request; did you mean stop?"),
        ({"by_name": {"a": {"stops": 1}}}, "is not a field of this request; did you mean stop?"),
        ({"generation_config": {"gen_params": 1}}, "is not a field of this request"),
    ],
)
def test_the_right_name_is_said_where_one_is_near(document: object, rule: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Question.model_validate(document)
    (fault,) = faults_of(raised.value, unknown=unknown_field(Question))
    assert fault.rule == rule


def test_only_what_is_a_field_there_is_suggested() -> None:
    assert near("max_tokens", ["max_completion_tokens"]) == "max_completion_tokens"
    assert near("max_tokens", ["max_completion_tokens", "max_new_tokens"]) == "max_new_tokens"
    assert near("gen_params", ["model"]) is None
    assert all(name not in meant[:1] for name, meant in OTHER_NAMES.items() if len(meant) == 1)


def test_where_any_key_may_be_nothing_is_near() -> None:
    assert fields_at(Question, ("labels",)) == []
    assert fields_at(Question, ()) == list(Question.model_fields)
