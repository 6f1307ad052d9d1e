"""One streamed answer of the engine that can go on after the engine was lost. Pure.

vLLM says the ids of its tokens where it is asked (return_token_ids), and takes ids as a prompt. So
an answer goes on with a completion of its prompt's ids and of those that were delivered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from contract.carry import Advance, Beginning, line
from web.events import DONE, event

Document = dict[str, Any]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_ASKED = "return_token_ids"
# Of the beginning of an answer; where it goes on there would be others.
_DEPENDS_ON_THE_START = (
    *("stop", "echo", "logprobs", "top_logprobs", "prompt_logprobs", "suffix", "best_of"),
    *("response_format", "structured_outputs", "tools", "functions", "use_beam_search"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structural_tag"),
    *("truncate_prompt_tokens", "continue_final_message", "min_tokens"),
)
_SAMPLING = (
    *("model", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "stop_token_ids", "ignore_eos", "seed"),
    *("skip_special_tokens", "spaces_between_special_tokens", "cache_salt", "priority"),
    *("bad_words", "allowed_token_ids", "user", "request_id"),
)


def goes_on(document: Mapping[str, Any]) -> bool:
    """Whether an answer to it can be carried: a stream of one choice, whose next token depends on
    the ids before it alone."""
    prompt = document.get("prompt", "")
    one = isinstance(prompt, str) or (
        isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
    )
    return (
        document.get("stream") is True
        and document.get("n") in (None, 1)
        and one
        and not any(document.get(name) for name in _DEPENDS_ON_THE_START)
    )


def prompt_digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def with_ids(document: Document) -> Document:
    """The question so that the answer tells its ids."""
    return {**document, _ASKED: True}


def about_prompt(document: Document) -> Document:
    """The question so that its answer is short, and tells the prompt's ids."""
    dropped = ("stream", "stream_options", "max_completion_tokens")
    kept = {name: value for name, value in document.items() if name not in dropped}
    return {**kept, "max_tokens": 1, _ASKED: True}


def most_tokens(path: str, document: Mapping[str, Any], room: int) -> int:
    """What an answer may have; `room` is what the context leaves behind the prompt."""
    names = ("max_completion_tokens", "max_tokens")
    given = [document[name] for name in names if isinstance(document.get(name), int)]
    usual = 16 if path == COMPLETIONS else room
    return min(room, given[0] if given else usual)


def follow_up(document: Document, prompt: Sequence[int], ids: Sequence[int], left: int) -> Document:
    """A completion of what was delivered, of `left` tokens at most, and at least one."""
    kept = {name: document[name] for name in _SAMPLING if document.get(name) is not None}
    if isinstance(kept.get("seed"), int):
        # Else the same random numbers come twice.
        kept["seed"] += len(ids)
    asked = {"prompt": [*prompt, *ids], "max_tokens": left, "stream": True, _ASKED: True}
    if document.get("stream_options"):
        asked["stream_options"] = document["stream_options"]
    return {**kept, **asked}


class ToldIds:
    """Of one connection's events, each with the line that confirms it. The last one, which has the
    finish reason, is confirmed by [DONE] alone: nothing goes on behind it.

    `beginning` None: the answer begins. `chat` False: events are passed on as they come; else they
    are those of a completion, and are made a chat's. `delivered` counts the ids before.
    """

    def __init__(
        self,
        *,
        commit: str,
        seed: int,
        shows_ids: bool,
        beginning: Beginning | None = None,
        chat: bool = False,
        delivered: int = 0,
    ) -> None:
        self._commit, self._seed, self._shows_ids = commit, seed, shows_ids
        self._beginning, self._chat, self._delivered = beginning, chat, delivered
        self.prompt: list[int] | None = None
        self._told = False
        self._held: list[int] = []

    def push(self, some: bytes) -> bytes:
        """One event, with or without its blank line."""
        some = some.strip()
        if not some.startswith(b"data:"):
            return b""
        if some + b"\n\n" == DONE:
            return DONE
        try:
            document = json.loads(some.removeprefix(b"data:"))
        except ValueError:
            return some + b"\n\n"
        return self._chunk(document) if isinstance(document, dict) else some + b"\n\n"

    def _chunk(self, document: Document) -> bytes:
        opening = self._opening(document)
        prompt_ids = document.pop("prompt_token_ids", None)
        if prompt_ids is not None and self._shows_ids and not self._delivered:
            document["prompt_token_ids"] = prompt_ids
        ids: list[int] = []
        says = ends = False
        for choice in document.get("choices", ()):
            ids += choice.get("token_ids") or []
            says, ends = says or _says(choice), ends or bool(choice.get("finish_reason"))
            if not self._shows_ids:
                choice.pop("token_ids", None)
                choice.pop("prompt_token_ids", None)
        self._held += ids
        shown = event(self._as_before(document))
        # Ids without text are half a character: they come again with the other half.
        return opening + shown + (self._confirmed() if says and not ends else b"")

    def _opening(self, document: Document) -> bytes:
        """The line that comes first, once the prompt's ids are known."""
        found: list[int] = document.get("prompt_token_ids") or []
        for choice in document.get("choices", ()):
            found = found or choice.get("prompt_token_ids") or []
        if self._told or not (found or self._beginning):
            return b""
        self._told = True
        if self._beginning is None:
            self.prompt = list(found)
            self._beginning = Beginning(
                id=str(document.get("id")),
                created=int(document.get("created", 0)),
                seed=self._seed,
                model_commit=self._commit,
                prompt=prompt_digest(found),
                choices=1,
            )
        return line(self._beginning)

    def _confirmed(self) -> bytes:
        held, self._held = self._held, []
        return line(Advance(0, tuple(held))) if held else b""

    def _as_before(self, document: Document) -> Document:
        if self._beginning is not None:
            document |= {"id": self._beginning.id, "created": self._beginning.created}
        usage = document.get("usage")
        if usage and self._delivered:
            usage["prompt_tokens"] -= self._delivered
            usage["completion_tokens"] = usage.get("completion_tokens", 0) + self._delivered
        if not self._chat:
            return document
        choices = [_as_delta(choice) for choice in document.get("choices", ())]
        return {**document, "object": "chat.completion.chunk", "choices": choices}


def _says(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    said = any(value for name, value in delta.items() if name != "role")
    return bool(choice.get("text") or said)


def _as_delta(choice: Document) -> Document:
    kept = {
        name: value for name, value in choice.items() if name not in ("text", "prompt_logprobs")
    }
    return {**kept, "delta": {"content": choice.get("text", "")}}
