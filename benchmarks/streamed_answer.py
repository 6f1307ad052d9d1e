"""A chat answer as a user sees it come, with its times."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

ANSWER_TOKENS = 24


@dataclass
class Answer:
    """One streamed answer; times in seconds. `status` is not 200 where it was refused."""

    status: int = 0
    first_s: float = 0.0
    whole_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0


def client_of(url: str) -> httpx.AsyncClient:
    """As many connections as there are requests."""
    return httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))


async def ask(
    client: httpx.AsyncClient,
    model: str,
    number: int,
    leave_after: int = 0,
    tokens: int = ANSWER_TOKENS,
) -> Answer:
    """`leave_after` so many tokens the client hangs up."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me the story of number {number}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    answer, start = Answer(), time.perf_counter()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            answer.status = response.status_code
            last = start
            async for line in response.aiter_lines():
                if response.status_code != httpx.codes.OK or not _has_token(line):
                    continue
                now = time.perf_counter()
                if answer.tokens:
                    answer.gaps_s.append(now - last)
                else:
                    answer.first_s = now - start
                last = now
                answer.tokens += 1
                if answer.tokens == leave_after:
                    break
    except httpx.HTTPError:
        answer.status = 0
    answer.whole_s = time.perf_counter() - start
    return answer


def _has_token(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    choices = json.loads(line[6:]).get("choices") or [{}]
    return bool(choices[0].get("delta", {}).get("content"))


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"{name}_p{rank}": cuts[rank - 1] * 1e3 for rank in (50, 95, 99)}
