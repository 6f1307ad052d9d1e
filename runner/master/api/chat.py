"""POST /v1/chat/completions, and AIOS's POST /v1/chat/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from runner.master.api.answers import Document, OpenAIAnswer, answer_openai, chat_logprobs
from runner.master.api.bodies import parse_body
from runner.master.api.chat_text import ChatText
from runner.master.api.openai_bodies import AiosChatBody, ChatBody
from runner.master.api.prompts import Prompts
from runner.master.engine.requests import FINISHED_BY_STOP, TokenEvent
from runner.master.text.choice import TextPiece, TextRequest
from runner.master.text.model_text import ModelText
from runner.master.text.tools.call_parts import CallPart, whole_calls
from web.body import read_json_object


async def chat_completions(request: Request) -> Response:
    """Without max_tokens the answer may fill the rest of the context."""
    body = parse_body(ChatBody, await read_json_object(request))
    return await answer_openai(request, body, Prompts.to_answer, ChatAnswer)


async def aios_chat(request: Request) -> Response:
    """As chat_completions, answers too; of the served model where the body names none."""
    body = parse_body(AiosChatBody, await read_json_object(request))
    body.model = body.model or request.app.state.spec.deployment_name
    return await answer_openai(request, body, Prompts.to_answer, ChatAnswer)


class ChatAnswer(OpenAIAnswer):
    """In a stream the role of a choice comes with its first text, its finish_reason in a chunk
    without text, which has the log probabilities of last tokens that gave none.

    `reasoning_content` is what the model marks as its reasoning, `tool_calls` what it calls; log
    probabilities are of all tokens, whichever text they are of.
    """

    def __init__(self, body: ChatBody, requests: Sequence[TextRequest], text: ModelText) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(body, requests, kind, "chatcmpl")
        self._body, self._token_bytes = body, text.token_bytes
        self._texts = [
            ChatText(text, request, self.head["id"], body.asked_tools) for request in requests
        ]

    def choice(self, piece: TextPiece) -> Document:
        text = self._texts[piece.index]
        said = text.push(piece)
        message: Document = {"role": "assistant", "content": said.content, "refusal": None}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["content"] = said.content or None
            message["tool_calls"] = [_call(text, part) for part in whole_calls(said.calls)]
        return {
            "index": piece.index,
            "message": message,
            "logprobs": self._logprobs(piece.events),
            "finish_reason": _reason(text, piece.finish_reason),
        }

    def deltas(self, piece: TextPiece, *, begins: bool) -> Iterable[Document]:
        text = self._texts[piece.index]
        said = text.push(piece)
        delta: Document = {"role": "assistant", "content": ""} if begins else {}
        if said.reasoning:
            delta["reasoning_content"] = said.reasoning
        if said.content:
            delta["content"] = said.content
        if said.calls:
            delta["tool_calls"] = [{"index": part.place} | _call(text, part) for part in said.calls]
        if not delta and self._body.logprobs and piece.events and piece.finish_reason is None:
            # Their text is held back; were they too, a carry would have to know what they were.
            delta["content"] = ""
        if delta:
            yield {
                "index": piece.index,
                "delta": delta,
                "logprobs": self._logprobs(piece.events),
                "finish_reason": None,
            }
        if piece.finish_reason is not None:
            yield {
                "index": piece.index,
                "delta": {},
                "logprobs": self._logprobs(piece.events) if piece.events and not delta else None,
                "finish_reason": _reason(text, piece.finish_reason),
            }

    def _logprobs(self, events: Sequence[TokenEvent]) -> Document | None:
        return chat_logprobs(events, self._token_bytes) if self._body.logprobs else None


def _call(text: ChatText, part: CallPart) -> Document:
    """Its id, type and name come with its beginning alone."""
    if part.name is None:
        return {"function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"id": text.call_id(part.place), "type": "function", "function": function}


def _reason(text: ChatText, reason: str | None) -> str | None:
    """An answer that ended by itself, and calls, ends so that the tools may answer."""
    return "tool_calls" if reason == FINISHED_BY_STOP and text.has_called else reason
