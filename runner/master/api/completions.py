"""Text that goes on where a prompt ends: /v1/completions, and AIOS's /generate and /set_config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runner.master.api.answers import (
    Document,
    OpenAIAnswer,
    answer_openai,
    begin,
    completion_logprobs,
    prompt_tokens,
    respond,
    usage,
)
from runner.master.api.bodies import GenerateBody, parse_body
from runner.master.api.openai_bodies import CompletionBody
from runner.master.api.prompts import Prompts
from runner.master.api.served_models import entering
from runner.master.text.choice import Offsets, TextPiece, TextRequest
from runner.master.text.model_text import ModelText
from web.body import read_json_object


async def completions(request: Request) -> Response:
    body = parse_body(CompletionBody, await read_json_object(request))
    return await answer_openai(request, body, Prompts.to_complete, CompletionAnswer)


async def generate(request: Request) -> Response:
    """{"output": text, ...}; with enable_streaming events {"output": piece}, the last one with
    finish_reason and usage."""
    body = parse_body(GenerateBody, await read_json_object(request))
    async with entering(request) as model:
        requests = await model.prompts.to_complete(body)
        text = begin(request, model, requests)
    answer, deadline_s = GenerateAnswer(requests), model.spec.request_deadline_s
    return await respond(request, text, answer, deadline_s, stream=body.enable_streaming)


class CompletionAnswer(OpenAIAnswer):
    def __init__(
        self, body: CompletionBody, requests: Sequence[TextRequest], text: ModelText
    ) -> None:
        super().__init__(body, requests, "text_completion", "cmpl")
        self._body, self._text = body, text
        self._echoed = [""] * len(requests)
        if body.echo:
            self._echoed = [
                prompt if isinstance(prompt, str) else text.decode(prompt)
                for prompt in body.prompts()
                for _ in range(body.n)
            ]
        self._offsets = [
            Offsets(text.tokenizer, request.generation.prompt_ids, len(echoed))
            for request, echoed in zip(requests, self._echoed, strict=True)
        ]

    def choice(self, piece: TextPiece) -> Document:
        [choice] = self.deltas(piece, begins=True)
        return choice

    def deltas(self, piece: TextPiece, *, begins: bool) -> Iterable[Document]:
        logprobs = None
        if self._body.logprobs is not None:
            logprobs = completion_logprobs(
                (*piece.prompt, *piece.events),
                self._text.token_bytes,
                [*self._prompt_offsets(piece), *self._own_offsets(piece)],
            )
        yield {
            "index": piece.index,
            "text": self._echoed[piece.index] + piece.text if begins else piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish_reason,
        }

    def _prompt_offsets(self, piece: TextPiece) -> Iterable[int]:
        offsets, length = Offsets(self._text.tokenizer), len(self._echoed[piece.index])
        # A text that was asked for may have been normalised before it became ids.
        return (min(length, offsets.push(event.token_id)) for event in piece.prompt)

    def _own_offsets(self, piece: TextPiece) -> Iterable[int]:
        offsets = self._offsets[piece.index]
        return (offsets.push(event.token_id) for event in piece.events)


class GenerateAnswer:
    """AIOS's shape. A whole answer is what a stream of one event would be."""

    def __init__(self, requests: Sequence[TextRequest]) -> None:
        self._prompt_tokens = prompt_tokens(requests, choices=1)

    def whole(self, choices: Sequence[TextPiece]) -> Document:
        [document] = self.chunks(choices[0])
        return document

    def chunks(self, piece: TextPiece) -> Iterable[Document]:
        if piece.finish_reason is None:
            yield {"output": piece.text}
            return
        yield {
            "output": piece.text,
            "finish_reason": piece.finish_reason,
            "usage": usage(self._prompt_tokens, piece.tokens, piece.reused),
        }

    def last(self) -> Iterable[Document]:
        return ()


async def set_config(request: Request) -> Response:
    """Change the defaults in memory; answers with all that are in force."""
    request.app.state.models.defaults.update(await read_json_object(request))
    return await get_config(request)


async def get_config(request: Request) -> Response:
    return JSONResponse(request.app.state.models.defaults.current())
