"""One question, which only a model that serves can answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from rollout.answers import answered_error
from rollout.errors import NotNow, RolloutFailed

PATH = "/v1/completions"
PROMPT = "The capital of France is"
MOST_TOKENS = 8
PAUSE_S = 1.0
# Who starts, is full or waits for the tier behind; a key's hash reaches a running server late.
_LATER = {401, 429, 502, 503, 504}


@dataclass(frozen=True)
class Tier:
    """Whom to ask: `model` is what it calls the model, `key` an API key of it, "" for none."""

    name: str
    url: str
    model: str
    key: str = ""


def ask(tier: Tier, limit_s: float, say: Callable[[str], None]) -> str:
    """The answer's text. Raises RolloutFailed: refused, or no answer within `limit_s`."""
    deadline = time.monotonic() + limit_s
    headers = {"Authorization": f"Bearer {tier.key}"} if tier.key else {}
    with httpx.Client(base_url=tier.url, headers=headers, trust_env=False) as client:
        while True:
            left_s = deadline - time.monotonic()
            try:
                return _asked(client, tier, max(left_s, PAUSE_S))
            except NotNow as reason:
                say(f"asking {tier.name}: {reason}")
                if left_s < PAUSE_S:
                    raise RolloutFailed(
                        f"the question to {tier.name} at {tier.url} got no answer within "
                        f"{limit_s:g} s: {reason}"
                    ) from reason
            time.sleep(PAUSE_S)


def _asked(client: httpx.Client, tier: Tier, timeout_s: float) -> str:
    question = {"model": tier.model, "prompt": PROMPT, "max_tokens": MOST_TOKENS, "temperature": 0}
    try:
        answer = client.post(PATH, json=question, timeout=timeout_s)
    except httpx.HTTPError as error:
        raise NotNow(f"it does not answer: {str(error) or type(error).__name__}") from error
    if answer.status_code in _LATER:
        raise NotNow(f"it answers {answer.status_code}: {answered_error(answer)}")
    if not answer.is_success:
        raise RolloutFailed(
            f"{tier.name} at {tier.url} answers the question with {answer.status_code}: "
            f"{answered_error(answer)}"
        )
    try:
        return str(answer.json()["choices"][0]["text"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise RolloutFailed(
            f"{tier.name} at {tier.url} answers the question with something that is no answer"
        ) from None
