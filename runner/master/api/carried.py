"""A request's field `carry`, judged: whether its answer can go on where a dead process stopped."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from contract.carry import ALONE_FROM, Carry
from contract.generation import ENGINE_BOUNDS
from runner.errors import InvalidField, ModelChanged
from runner.master.engine.requests import Carried
from runner.master.text.choice import ChoiceText, TextRequest
from runner.master.text.model_text import ModelText

_BEGINNING = "carry.beginning"
# Fewer ids are made into text faster than a thread takes them over.
_MANY_IDS = 2_000


def prompt_digest(requests: Sequence[TextRequest], choices: int) -> str:
    """Of the ids of every prompt, each of which has so many `choices`; whatever the machine."""
    digest = hashlib.sha256()
    for request in requests[::choices]:
        ids = request.generation.prompt_ids
        digest.update(f"{len(ids)}:{','.join(map(str, ids))};".encode())
    return digest.hexdigest()


def check_beginning(carry: Carry, model_commit: str, choices: int) -> None:
    """What needs no prompt; raises ModelChanged, InvalidField."""
    beginning = carry.beginning
    if beginning.model_commit != model_commit:
        rule = (
            f"is not the commit that is served, {model_commit!r}: another model goes on with other"
            " words; ask again without carry for an answer from its beginning"
        )
        raise ModelChanged(f"{_BEGINNING}.model_commit", beginning.model_commit, rule)
    if beginning.choices != choices:
        rule = f"must be {choices}, the choices of all prompts of this request"
        raise InvalidField(f"{_BEGINNING}.choices", beginning.choices, rule)


def carried_seed(carry: Carry, asked: int | None) -> int:
    """The seed that was told; raises InvalidField where another one was `asked` for."""
    told, bounds = carry.beginning.seed, ENGINE_BOUNDS["seed"]
    if not bounds.hold(told):
        raise InvalidField(f"{_BEGINNING}.seed", told, f"must be {bounds.rule}")
    if asked is not None and asked != told:
        raise InvalidField(f"{_BEGINNING}.seed", told, f"must be {asked}, this request's seed")
    return told


async def carried_requests(
    carry: Carry,
    requests: Sequence[TextRequest],
    text: ModelText,
    *,
    prompt: str,
    vocabulary_size: int,
    from_start: bool,
) -> list[TextRequest]:
    """Each choice so that it goes on after its ids; raises InvalidField where `prompt`, the digest
    of the prompts, is another, or ids cannot be those of their choice.

    With `from_start` all is computed again, with the seed that was told.
    """
    if carry.beginning.prompt != prompt:
        rule = "does not belong to this prompt: the ids are of an answer to another one"
        raise InvalidField(f"{_BEGINNING}.prompt", carry.beginning.prompt, rule)
    for request, ids in zip(requests, carry.ids, strict=True):
        _check_ids(f"carry.ids[{request.index}]", ids, request, vocabulary_size)
    alone = carry.fruitless >= ALONE_FROM
    delivered = [() if from_start else ids for ids in carry.ids]

    def go_on() -> list[TextRequest]:
        return [
            _begun(request, text, Carried(ids, alone))
            for request, ids in zip(requests, delivered, strict=True)
        ]

    if sum(map(len, delivered)) < _MANY_IDS:
        return go_on()
    return await asyncio.to_thread(go_on)


def _begun(request: TextRequest, text: ModelText, carried: Carried) -> TextRequest:
    begun = ChoiceText(text, request)
    begun.go_on(request.generation, carried.ids)
    return replace(request, generation=replace(request.generation, carried=carried), begun=begun)


def _check_ids(field: str, ids: Sequence[int], request: TextRequest, vocabulary_size: int) -> None:
    most = request.generation.max_new_tokens
    if len(ids) > most:
        rule = f"must be at most {most}, the tokens that this request may generate"
        raise InvalidField(field, f"{len(ids)} ids", rule)
    for token_id in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token_id < vocabulary_size:
            rule = f"must be token ids below {vocabulary_size}, which the model has"
            raise InvalidField(field, token_id, rule)
