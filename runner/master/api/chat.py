"""POST /v1/chat/completions, and AIOS's POST /v1/chat/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from runner.master.api.answers import Document, OpenAIAnswer, answer_openai, chat_logprobs
from runner.master.api.bodies import AiosChatBody, ChatBody, parse_body
from runner.master.api.prompts import Prompts
from runner.master.engine.requests import TokenEvent
from runner.master.text.choice import TextPiece, TextRequest
from runner.master.text.model_text import ModelText
from runner.master.text.reasoning import Split
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

    `reasoning_content` is what the model marks as its reasoning; log probabilities are of all
    tokens, whichever text they are of.
    """

    def __init__(self, body: ChatBody, requests: Sequence[TextRequest], text: ModelText) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(body, requests, kind, "chatcmpl")
        self._body, self._token_bytes = body, text.token_bytes
        reasoning = text.reasoning
        self._splitters = [
            reasoning.splitter(request.generation.prompt_ids) if reasoning else None
            for request in requests
        ]

    def choice(self, piece: TextPiece) -> Document:
        split = self._split(piece)
        message = {"role": "assistant", "content": split.content, "refusal": None}
        if split.reasoning:
            message["reasoning_content"] = split.reasoning
        return {
            "index": piece.index,
            "message": message,
            "logprobs": self._logprobs(piece.events),
            "finish_reason": piece.finish_reason,
        }

    def deltas(self, piece: TextPiece, *, begins: bool) -> Iterable[Document]:
        split = self._split(piece)
        delta: Document = {"role": "assistant", "content": ""} if begins else {}
        if split.reasoning:
            delta["reasoning_content"] = split.reasoning
        if split.content:
            delta["content"] = split.content
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
                "finish_reason": piece.finish_reason,
            }

    def _split(self, piece: TextPiece) -> Split:
        splitter = self._splitters[piece.index]
        if splitter is None:
            return Split("", piece.text)
        split = splitter.push(piece.text, piece.marks)
        if piece.finish_reason is None:
            return split
        rest = splitter.flush()
        return Split(split.reasoning + rest.reasoning, split.content + rest.content)

    def _logprobs(self, events: Sequence[TokenEvent]) -> Document | None:
        return chat_logprobs(events, self._token_bytes) if self._body.logprobs else None
