"""POST /v1/chat/completions, and AIOS's POST /v1/chat/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from runner.master.api.answers import Document, OpenAIAnswer, chat_logprobs, respond
from runner.master.api.bodies import AiosChatBody, ChatBody, parse_body
from runner.master.api.id_lines import asked_lines
from runner.master.text.choice import TextPiece, TextRequest
from runner.master.text.model_text import TokenBytes
from web.body import read_json_object


async def chat_completions(request: Request) -> Response:
    """Without max_tokens the answer may fill the rest of the context."""
    return await _answer(request, parse_body(ChatBody, await read_json_object(request)))


async def aios_chat(request: Request) -> Response:
    """As chat_completions, answers too; of the served model where the body names none."""
    body = parse_body(AiosChatBody, await read_json_object(request))
    body.model = body.model or request.app.state.spec.deployment_name
    return await _answer(request, body)


async def _answer(request: Request, body: ChatBody) -> Response:
    state = request.app.state
    requests = await state.prompts.to_answer(body)
    answer = ChatAnswer(body, requests, state.text.token_bytes)
    lines = asked_lines(request, body, requests, answer.head, state.engine)
    return await respond(request, requests, answer, stream=body.stream, lines=lines)


class ChatAnswer(OpenAIAnswer):
    """In a stream the role of a choice comes with its first text, its finish_reason in a chunk
    without text, which has the log probabilities of last tokens that gave none."""

    def __init__(
        self, body: ChatBody, requests: Sequence[TextRequest], token_bytes: TokenBytes
    ) -> None:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(body, requests, kind, "chatcmpl")
        self._body, self._token_bytes = body, token_bytes

    def choice(self, piece: TextPiece) -> Document:
        return {
            "index": piece.index,
            "message": {"role": "assistant", "content": piece.text, "refusal": None},
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish_reason,
        }

    def deltas(self, piece: TextPiece, *, begins: bool) -> Iterable[Document]:
        delta: Document = {"role": "assistant", "content": ""} if begins else {}
        if piece.text:
            delta["content"] = piece.text
        if delta:
            yield {
                "index": piece.index,
                "delta": delta,
                "logprobs": self._logprobs(piece),
                "finish_reason": None,
            }
        if piece.finish_reason is not None:
            yield {
                "index": piece.index,
                "delta": {},
                "logprobs": self._logprobs(piece) if piece.events and not delta else None,
                "finish_reason": piece.finish_reason,
            }

    def _logprobs(self, piece: TextPiece) -> Document | None:
        return chat_logprobs(piece.events, self._token_bytes) if self._body.logprobs else None
