"""Concurrent streamed completions, and the text that each client saw."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Stream:
    """One client's view: the text so far, and how it ended."""

    body: dict[str, Any]
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None
    pieces: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, client: httpx.AsyncClient) -> None:
        try:
            async with client.stream("POST", "/v1/completions", json=self.body) as answer:
                if answer.status_code != 200:
                    self.error = (await answer.aread()).decode()
                    return
                async for line in answer.aiter_lines():
                    self._take(line)
        except httpx.HTTPError as error:
            self.error = repr(error)
        finally:
            self.started.set()

    def _take(self, line: str) -> None:
        if not line.startswith("data: ") or line == "data: [DONE]":
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.error = event["error"]["message"]
            return
        for choice in event["choices"]:
            self.text += choice["text"]
            self.finish_reason = choice["finish_reason"] or self.finish_reason
            self.pieces += bool(choice["text"])
        if self.pieces >= 3:
            self.started.set()


SUBJECTS = (
    "The lighthouse keeper climbed the stairs and",
    "In the history of mathematics, the number zero",
    "A river begins in the mountains, where",
    "The old library had a secret door that",
    "Bread is made from flour, water and",
    "When the train left the station, she",
    "The planets move around the sun because",
    "He opened the letter slowly, for",
)


def make_bodies(count: int, new_tokens: int) -> list[dict[str, Any]]:
    """Half greedy, half seeded sampling, of unequal prompts."""
    bodies = []
    for number in range(count):
        body: dict[str, Any] = {
            "model": "fault",
            "prompt": f"Chapter {number}. {SUBJECTS[number % len(SUBJECTS)]} " * (1 + number % 3),
            "max_tokens": new_tokens,
            "ignore_eos": True,
            "stream": True,
            "temperature": 0,
        }
        if number % 2:
            body |= {"temperature": 0.9, "top_p": 0.95, "seed": 100 + number}
        bodies.append(body)
    return bodies


async def run_streams(url: str, bodies: list[dict[str, Any]], fault: Any = None) -> list[Stream]:
    """All bodies at once; `fault`, a function, is called in a thread once every stream flows."""
    streams = [Stream(body) for body in bodies]
    async with httpx.AsyncClient(base_url=url, timeout=180) as client:
        tasks = [asyncio.create_task(stream.run(client)) for stream in streams]
        if fault is not None:
            await asyncio.gather(*(stream.started.wait() for stream in streams))
            await asyncio.to_thread(fault)
        await asyncio.gather(*tasks)
    return streams
