"""A result as a frame: from the last stage back to the master."""

from __future__ import annotations

import math
from collections.abc import Sequence

from runner.errors import ProtocolError
from runner.grammar import GrammarFault
from runner.sampling_parameters import MAX_LOGPROBS
from runner.steps import Refusal, SampledToken, StageTime, StepResult
from runner.transport.frames import (
    ALTERNATIVE,
    REFUSED,
    SAMPLED,
    TIME,
    Header,
    Limits,
    Operation,
    ResultCounts,
    decode_times,
)


def encode_result(
    header: Header,
    body: bytes | bytearray,
    time: StageTime,
    tokens: Sequence[SampledToken],
    scored: Sequence[SampledToken] = (),
    refused: Sequence[Refusal] = (),
    *,
    aborted: bool = False,
) -> bytes:
    """What the last stage returns for the step of `header` and `body`."""
    rows = (*tokens, *scored)
    alternatives = sum(len(token.alternatives) for token in rows)
    counts = ResultCounts(len(tokens), len(scored), alternatives, len(refused))
    front = Header(
        Operation.RESULT, header.epoch, 0, header.step, header.times + 1, counts, aborted
    )
    parts = [front.encode()]
    for token in rows:
        logprob = math.nan if token.logprob is None else token.logprob
        parts.append(
            SAMPLED.pack(
                token.request,
                token.position,
                token.token_id,
                token.logprob is not None,
                logprob,
                len(token.alternatives),
            )
        )
    parts.extend(ALTERNATIVE.pack(*item) for token in rows for item in token.alternatives)
    parts.extend(REFUSED.pack(item.request, item.fault) for item in refused)
    parts.append(bytes(body[len(body) - header.times * TIME.size :]))
    parts.append(TIME.pack(time.rank, time.compute_ns, time.wait_ns))
    return b"".join(parts)


def decode_result(header: Header, body: bytes | bytearray, limits: Limits) -> StepResult:
    """The result of a checked header and its whole body; raises ProtocolError."""
    count, scored, alternatives, refusals = header.of_result
    end_of_tokens = (count + scored) * SAMPLED.size
    view = memoryview(body)
    pairs = list(
        ALTERNATIVE.iter_unpack(
            view[end_of_tokens : end_of_tokens + alternatives * ALTERNATIVE.size]
        )
    )
    for token_id, logprob in pairs:
        _check_token(token_id, logprob, limits)
    tokens: list[SampledToken] = []
    taken = 0
    for request, position, token_id, has_logprob, logprob, more in SAMPLED.iter_unpack(
        view[:end_of_tokens]
    ):
        _check_token(token_id, logprob if has_logprob else 0.0, limits)
        if position > limits.positions or more > MAX_LOGPROBS:
            raise ProtocolError(f"a token at position {position} with {more} alternatives")
        best = tuple(pairs[taken : taken + more]) if more else ()
        taken += more
        value = logprob if has_logprob else None
        tokens.append(SampledToken(request, position, token_id, value, best))
    if taken != alternatives:
        raise ProtocolError(f"alternatives = {alternatives}: the tokens name {taken}")
    end_of_pairs = end_of_tokens + alternatives * ALTERNATIVE.size
    refused = _refused(view[end_of_pairs : end_of_pairs + refusals * REFUSED.size])
    times = decode_times(header, body)
    sampled, own = tuple(tokens[:count]), tuple(tokens[count:])
    return StepResult(header.step, sampled, times, own, header.aborted, refused)


def _refused(data: memoryview) -> tuple[Refusal, ...]:
    try:
        return tuple(
            Refusal(request, GrammarFault(fault)) for request, fault in REFUSED.iter_unpack(data)
        )
    except ValueError as error:
        raise ProtocolError(f"a request is refused: {error}") from None


def _check_token(token_id: int, logprob: float, limits: Limits) -> None:
    if token_id >= limits.vocab_size:
        raise ProtocolError(f"token id {token_id}: must be below {limits.vocab_size}")
    if not logprob <= 0.001:  # rounding may leave a certain token a little above 0; NaN fails too
        raise ProtocolError(f"log probability = {logprob}: must be at most 0")
