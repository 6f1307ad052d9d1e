"""The fields that hold an answer to a form: what the engine gets of them, and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from openai import OpenAI

from runner.grammar import MAX_GRAMMAR_BYTES
from runner.master.api import grammar_check
from runner.master.api.grammar_check import GrammarCheck
from runner.master.api.grammar_fields import JSON_OPTIONS, AskedGrammar
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import MODEL

MESSAGES = [{"role": "user", "content": "Who?"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
RECURSIVE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
}
# Twelve seconds, if it were let.
SLOW = {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(3, 16)]}


def schema_format(schema: object, **more: Any) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"json_schema": {**schema, **JSON_OPTIONS}}


def lark(text: str) -> dict[str, Any]:
    return {"lark_grammar": text}


GBNF = 'root ::= "a" | "b" root'
SERVED: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "structured_outputs": None, "guided_json": None}, None),
    ({"response_format": {"type": "json_object"}}, json_schema({"type": "object"})),
    (schema_format(SCHEMA), json_schema(SCHEMA)),
    (schema_format(SCHEMA, strict=True, description="of a thing"), json_schema(SCHEMA)),
    (schema_format(SCHEMA, strict=False), json_schema(SCHEMA)),
    (schema_format(RECURSIVE), json_schema(RECURSIVE)),
    ({"structured_outputs": {"json": SCHEMA}}, json_schema(SCHEMA)),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, json_schema(SCHEMA)),
    ({"structured_outputs": {"json_object": True}}, json_schema({"type": "object"})),
    ({"structured_outputs": {"regex": "a/b+"}}, lark(r"start: /a\/b+/")),
    ({"structured_outputs": {"choice": ["a", "é"]}}, lark(r'start: "a" | "\u00e9"')),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, lark('start: "a"')),
    ({"guided_json": SCHEMA}, json_schema(SCHEMA)),
    ({"guided_regex": "[ab]"}, lark("start: /[ab]/")),
    ({"guided_choice": ["a"]}, lark('start: "a"')),
    ({"guided_grammar": 'start: "a"'}, lark('start: "a"')),
    ({"guided_regex": "a", "guided_decoding_backend": "xgrammar"}, lark("start: /a/")),
]


def post(url: str, path: str, changes: dict[str, Any]) -> httpx.Response:
    question = {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}
    return httpx.post(url + path, json={"model": MODEL, **question, **changes}, timeout=60)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_the_engine_is_asked(url: str, engine: ScriptedEngine, path: str) -> None:
    for changes, expected in SERVED:
        answer = post(url, path, {**changes, "n": 2})
        assert answer.status_code == 200, answer.text
        for request in engine.requests[-2:]:
            if expected is None:
                assert request.grammar is None
            else:
                assert request.grammar is not None
                assert json.loads(request.grammar.text) == {"grammars": [expected]}
    converted = post(url, path, {"structured_outputs": {"grammar": GBNF}})
    assert converted.status_code == 200
    assert engine.requests[-1].grammar is not None
    assert "start: " in engine.requests[-1].grammar.text


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


OF_SCHEMA = "response_format.json_schema.schema"
OBJECT = {"response_format": {"type": "json_object"}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
    ({"response_format": {}}, "response_format.type", "is required"),
    ({"response_format": "json_object"}, "response_format", "mapping"),
    ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "not a field"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "is required with type json_schema",
    ),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
        "response_format.json_schema",
        "only with type json_schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        OF_SCHEMA,
        "is required",
    ),
    (schema_format("x"), OF_SCHEMA, "mapping"),
    (schema_format({"type": "strin"}), OF_SCHEMA, "Invalid type: strin"),
    (schema_format({"type": "string", "not": {"const": ""}}), OF_SCHEMA, '["not"]; make it'),
    (schema_format({"type": "string", "format": "colour"}), OF_SCHEMA, "Unknown format"),
    (schema_format({"$ref": "#/$defs/x"}), OF_SCHEMA, "does not exist"),
    (schema_format({"$ref": "#"}), OF_SCHEMA, "nothing can be written"),
    (schema_format({"$ref": "http://127.0.0.1:9/x"}), OF_SCHEMA, "is not present in a registry"),
    (schema_format({"type": "integer", "minimum": 2, "maximum": 1}), OF_SCHEMA, "Unsatisfiable"),
    (
        schema_format({"enum": ["x" * 100] * 10_000}),
        OF_SCHEMA,
        f"at most {MAX_GRAMMAR_BYTES:,}: make it smaller",
    ),
    (schema_format(nested(200)), OF_SCHEMA, "recursion limit exceeded"),
    (schema_format(SLOW), OF_SCHEMA, "takes too long"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn", "did you mean json"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "is not JSON"),
    ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "a JSON object"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex", "look-around"),
    ({"structured_outputs": {"regex": "(" * 9000}}, "structured_outputs.regex", "cannot be served"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least one"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "string"),
    ({"structured_outputs": {"choice": ["\ud800"]}}, "structured_outputs.choice[0]", ""),
    ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar", "cannot be served"),
    ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", "unknown name"),
    ({"guided_json": 5}, "guided_json", "must be"),
    ({"guided_regex": "["}, "guided_regex", "cannot be served"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "not supported"),
    ({"structural_tag": {}}, "structural_tag", "not supported"),
    ({**OBJECT, "guided_regex": "a"}, "guided_regex", "beside response_format"),
    ({"guided_json": SCHEMA, "guided_choice": ["a"]}, "guided_choice", "beside guided_json"),
    ({**OBJECT, "ignore_eos": True}, "ignore_eos", "false beside response_format"),
]


def test_what_is_refused_names_field_and_rule(url: str, engine: ScriptedEngine) -> None:
    for changes, field, rule in REFUSED:
        content = json.dumps({"model": MODEL, "messages": MESSAGES, **changes})
        answer = httpx.post(f"{url}/v1/chat/completions", content=content, timeout=60)
        assert answer.status_code == 400, changes
        error = answer.json()["error"]
        assert error["param"] == field
        assert rule in error["message"]
        assert len(error["message"]) < 1000
    assert engine.requests == []


def test_a_model_without_an_end_is_held_to_nothing(url: str, engine: ScriptedEngine) -> None:
    engine.vocabulary_size = 2
    error = post(url, "/v1/completions", {**OBJECT, "prompt": [1]}).json()["error"]
    assert error["param"] == "response_format"
    assert "end of a text" in error["message"]


def test_a_form_that_takes_long_keeps_nobody_waiting(
    url: str, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, judge = threading.Event(), GrammarCheck._judge

    def slowly(self: GrammarCheck, kind: str, text: str):
        if "patience" in text:
            let_go.wait()
        return judge(self, kind, text)

    monkeypatch.setattr(GrammarCheck, "_judge", slowly)
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(post, url, "/v1/completions", {"guided_regex": "patience"})
        try:
            assert post(url, "/v1/completions", {}).status_code == 200
            assert post(url, "/v1/completions", {"guided_regex": "a+"}).status_code == 200
            assert not slow.done()
        finally:
            let_go.set()
        assert slow.result().status_code == 200


def test_a_program_that_was_ended_is_started_again(url: str, engine: ScriptedEngine) -> None:
    for number in range(2 * grammar_check.AT_A_TIME):
        unknown = SLOW | {"title": f"slow {number}"}
        assert post(url, "/v1/completions", schema_format(unknown)).status_code == 400
    for number in range(grammar_check.AT_A_TIME + 1):
        assert post(url, "/v1/completions", {"guided_regex": f"a{number}"}).status_code == 200


def test_a_program_that_somebody_ended_refuses_nothing() -> None:
    check = GrammarCheck()

    def killed() -> None:
        program = check._own.program
        program.kill()
        program.wait()

    asked = [AskedGrammar("regex", f"a{number}", "") for number in range(3)]
    check._threads = ThreadPoolExecutor(1)
    for one in asked:
        assert "start: " in asyncio.run(check.check(one)).text
        check._threads.submit(killed).result()


def test_forms_of_one_domain_keep_none_of_another_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    started, let_go = threading.Semaphore(0), threading.Semaphore(0)
    judge, begun = GrammarCheck._judge, list[str]()

    def slowly(self: GrammarCheck, kind: str, text: str):
        begun.append(text)
        started.release()
        if "slow" in text:
            let_go.acquire()
        return judge(self, kind, text)

    monkeypatch.setattr(GrammarCheck, "_judge", slowly)

    async def ask() -> None:
        check = GrammarCheck()
        texts = [*(f"slow{number}" for number in range(6)), *["slow5"] * 6]
        slow = [
            asyncio.create_task(check.check(AskedGrammar("regex", text, ""), "its"))
            for text in texts
        ]
        for _ in range(grammar_check.AT_A_TIME):
            await asyncio.to_thread(started.acquire)
        other = asyncio.create_task(check.check(AskedGrammar("regex", "quick", ""), "another"))
        await asyncio.sleep(0)
        let_go.release()
        await other
        assert sum(task.done() for task in slow) <= 1
        for _ in texts:
            let_go.release()
        await asyncio.gather(*slow)

    asyncio.run(ask())
    assert begun.index("quick") <= grammar_check.AT_A_TIME
    assert begun.count("slow5") <= grammar_check.AT_A_TIME


def test_verdicts_are_remembered_up_to_a_size(
    url: str, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    judge = GrammarCheck._judge

    def counted(self: GrammarCheck, kind: str, text: str):
        asked.append(text)
        return judge(self, kind, text)

    monkeypatch.setattr(GrammarCheck, "_judge", counted)
    monkeypatch.setattr(grammar_check, "_KNOWN_BYTES", 4)
    for text in ("aa", "bb", "aa", "(c", "(c", "bb"):
        post(url, "/v1/completions", {"guided_regex": text})
    assert asked == ["aa", "bb", "(c", "bb"]


def test_the_official_client_parses_what_it_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        extra_body={"top_k": 5},
    )
    assert answer.choices[0].finish_reason == "stop"
