"""What each surface takes of every sampling field, just inside and just outside its bounds.

The bounds differ from surface to surface on purpose: the master takes what engines take, the
proxy block what the block protocol says, the stack file what a block takes. Each keeps its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.stack.faults import StackConfigError
from infra.stack.file import parse_deployment
from runner.errors import InvalidField
from runner.sampling_parameters import SamplingParameters
from tests.goldens.error_answer import outcome
from tests.goldens.recorded_file import check_recorded
from tests.infra.deployments import MINIMAL

Cases = dict[str, dict[str, Any]]
_LARGEST_INTEGER = 2**63 - 1
_VALUES: dict[str, list[Any]] = {
    "temperature": [-0.001, 0, 0.0, 1, 2, 2.0, 2.001],
    "top_k": [-2, -1, 0, 1, 2.0, 2.5, 1000, 1001, 2**31 - 1, 2**31],
    "top_p": [-0.001, 0, 1e-9, 1, 1.001],
    "min_p": [-0.001, 0, 1, 1.001],
    "repetition_penalty": [-1, 0, 1e-9, 0.009, 0.01, 10, 10.001],
    "presence_penalty": [-2.001, -2, 2, 2.001],
    "frequency_penalty": [-2.001, -2, 2, 2.001],
    "seed": [-1, 0, 1.0, 1.5, _LARGEST_INTEGER, _LARGEST_INTEGER + 1],
    "stop": ["x", "", [], [""], [5], {}, ["x", None]],
    "stop_token_ids": [[], [0], [-1], [2**31 - 1], [2**31], [1.5], 5],
    "logit_bias": [{}, {"5": 100}, {"5": -100}, {"5": 100.001}, {"5": -100.001}, {"x": 1},
                   {"-1": 1}, {"5": "1"}, {"49151": 1}, {"49152": 1}, []],
    "ignore_eos": [True, False],
    "do_sample": [True, False],
    "n": [0, 1, 16, 17],
    "best_of": [1, 2],
    "logprobs": [-1, 0, 20, 21],
    "top_logprobs": [0, 5],
    "echo": [True],
    "stream_options": [{}, {"include_usage": True}],
    "max_tokens": [0, 1, 1.0, 400, 36000, 36001],
    "max_completion_tokens": [0, 1, 400, 36000],
    "max_new_tokens": [0, 1, 1.0, 400, 36000, 36001],
    "no_such_field": [1],
}  # fmt: skip
_WRONG_KINDS: list[Any] = [None, True, "1", [], {}]
# By name, because they would be long to show.
_LONG: Cases = {
    "stop": {
        "16 strings": ["x"] * 16,
        "17 strings": ["x"] * 17,
        "512 characters": ["x" * 512],
        "513 characters": ["x" * 513],
    },
    "stop_token_ids": {f"{count} ids": [5] * count for count in (62, 63, 64, 65)},
    "logit_bias": {
        f"{count} entries": {str(token): 1 for token in range(count)} for count in (1024, 1025)
    },
}
# Two fields of which one depends on the other.
_TOGETHER: dict[str, dict[str, Any]] = {
    "logprobs true, top_logprobs -1": {"logprobs": True, "top_logprobs": -1},
    "logprobs true, top_logprobs 0": {"logprobs": True, "top_logprobs": 0},
    "logprobs true, top_logprobs 20": {"logprobs": True, "top_logprobs": 20},
    "logprobs true, top_logprobs 21": {"logprobs": True, "top_logprobs": 21},
    "logprobs and echo": {"logprobs": 1, "echo": True},
    "max_tokens and max_completion_tokens": {"max_tokens": 1, "max_completion_tokens": 1},
    "do_sample false, temperature 2.001": {"do_sample": False, "temperature": 2.001},
    "do_sample false, temperature 1": {"do_sample": False, "temperature": 1},
}


def cases() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(field, shown value, the fields of the request)."""
    for field, values in _VALUES.items():
        # By their JSON, for True equals 1 here and not there.
        for shown in dict.fromkeys(map(json.dumps, [*values, *_WRONG_KINDS])):
            yield field, shown, {field: json.loads(shown)}
        for name, value in _LONG.get(field, {}).items():
            yield field, name, {field: value}
    for name, fields in _TOGETHER.items():
        yield "together", name, fields


def noted(outcomes: Iterator[tuple[str, str, Any]]) -> dict[str, dict[str, str]]:
    """By field and value; a refusal on one line."""
    found: dict[str, dict[str, str]] = {}
    for field, shown, result in outcomes:
        if isinstance(result, dict):
            parts = (result["status"], result.get("code"), result.get("param"))
            result = " ".join(map(str, ("refused:", *parts)))
        assert shown not in found.setdefault(field, {}), (field, shown)
        found[field][shown] = result
    return found


MASTER_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"model": "test/model", "prompt": "x"}),
    "chat": (
        "/v1/chat/completions",
        {"model": "test/model", "messages": [{"role": "user", "content": "x"}]},
    ),
    "generate": ("/generate", {"prompt": "x"}),
}


@pytest.mark.parametrize("name", MASTER_BODIES)
def test_the_masters_requests(name: str, master: str) -> None:
    path, body = MASTER_BODIES[name]
    with httpx.Client(base_url=master) as client:
        found = noted(
            (field, shown, outcome(client.post(path, json=body | fields)))
            for field, shown, fields in cases()
        )
    check_recorded(f"bounds-master-{name}", found)


def test_the_masters_set_config(master: str) -> None:
    with httpx.Client(base_url=master) as client:

        def result(fields: dict[str, Any]) -> Any:
            """Each alone: what was set is put back."""
            answer = client.post("/set_config", json=fields)
            if answer.status_code == 200:
                back = client.post("/set_config", json=dict.fromkeys(fields))
                assert back.status_code == 200
            return outcome(answer)

        found = noted((field, shown, result(fields)) for field, shown, fields in cases())
    check_recorded("bounds-master-set-config", found)


def test_sampling_parameters() -> None:
    """The master's last word, which is a stage's own too."""

    def result(fields: dict[str, Any]) -> Any:
        try:
            SamplingParameters.from_json(fields)
        except InvalidField as refusal:
            return {"status": "InvalidField", "param": refusal.field}
        return "accepted"

    found = noted((field, shown, result(fields)) for field, shown, fields in cases())
    check_recorded("bounds-sampling-parameters", found)


def test_the_proxy_blocks_generation_config(proxy: str) -> None:
    with httpx.Client(base_url=proxy, timeout=30) as client:

        def result(number: int, fields: dict[str, Any]) -> Any:
            data = {"message": "x", "mode": "completions", "generation_config": fields}
            session = f"bounds-{number}"
            body = {"session_id": session, "seq_no": 1, "data": data}
            return outcome(client.post("/infer", json=body))

        found = noted(
            (field, shown, result(number, fields))
            for number, (field, shown, fields) in enumerate(cases())
        )
    check_recorded("bounds-proxy-block", found)


def test_the_stack_files_generation_config() -> None:
    def result(fields: dict[str, Any]) -> Any:
        block = {"block_id": "block", "generation_config": fields}
        try:
            parse_deployment({**MINIMAL, "proxy_blocks": [block]})
        except StackConfigError as refusal:
            return {"status": "fault", "param": [fault.path for fault in refusal.faults]}
        return "accepted"

    found = noted((field, shown, result(fields)) for field, shown, fields in cases())
    check_recorded("bounds-stack-file", found)
