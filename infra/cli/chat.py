"""`splitstack chat`: a conversation in the terminal, over the public API."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TextIO

import httpx

from infra.cli.quiet_keyboard import quiet_keyboard
from infra.stack.faults import UserError

CONNECT_TIMEOUT_S = 5.0
_HELP = """\
/reset         forget what was said
/system TEXT   another system message; without TEXT none
/quit          end, as Ctrl-D does
Ctrl-C stops an answer."""


class AnswerFailed(Exception):
    """The server refused the request or broke off; the message is what it said."""


@dataclass
class Answer:
    """One answer as it grows. `tokens` is what the server counted, None until it says."""

    text: str = ""
    tokens: int | None = None
    began: float = 0.0
    ended: float = 0.0

    def take(self, chunk: dict[str, Any]) -> str:
        """What the chunk adds to the text."""
        usage = chunk.get("usage")
        if usage:
            self.tokens = usage["completion_tokens"]
        choices = chunk.get("choices") or [{}]
        piece: str = choices[0].get("delta", {}).get("content") or ""
        if piece:
            self.ended = time.monotonic()
            self.began = self.began or self.ended
            self.text += piece
        return piece

    def figures(self) -> str:
        """Tokens and speed in words; "" where the server did not count."""
        if self.tokens is None:
            return ""
        if self.tokens < 2 or self.ended <= self.began:
            return f"{self.tokens} tokens"
        speed = (self.tokens - 1) / (self.ended - self.began)
        return f"{self.tokens} tokens, {speed:.1f} tokens/s"


@dataclass
class ChatSession:
    """The conversation with one block, `model`; `title` names what stands behind it.

    `sampling` are fields of the request's body.
    """

    client: httpx.Client
    model: str
    title: str = ""
    context: int | None = None
    system: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        self.turns.clear()

    def ask(self, text: str, answer: Answer) -> Generator[str, None, None]:
        """Pieces of the answer, which grows with them; raises AnswerFailed.

        What was said until it ended, or was closed, is kept; a question without any answer is not.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            yield from self._stream(answer)
        finally:
            if answer.text:
                self.turns.append({"role": "assistant", "content": answer.text})
            else:
                self.turns.pop()

    def _stream(self, answer: Answer) -> Generator[str, None, None]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            "model": self.model,
            "messages": [*system, *self.turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.sampling,
        }
        try:
            with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                    raise AnswerFailed(_refusal(response))
                for line in response.iter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        chunk = json.loads(line[5:])
                        if "error" in chunk:
                            raise AnswerFailed(str(chunk["error"].get("message")))
                        if piece := answer.take(chunk):
                            yield piece
        except httpx.HTTPError as error:
            raise AnswerFailed(
                f"{self.client.base_url}: {error or type(error).__name__}"
            ) from error
        raise AnswerFailed("the answer broke off before its end")


def open_chat(url: str, key: str, model: str) -> ChatSession:
    """A session with `model`, or with the first block; raises UserError."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    client = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=False)
    try:
        answer = client.get("/v1/models", timeout=CONNECT_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise UserError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    if not answer.is_success:
        hint = "; give it with SPLITSTACK_API_KEY" if answer.status_code == 401 else ""
        raise UserError(f"{url}: {_refusal(answer)}{hint}")
    served = {str(entry["id"]): entry for entry in answer.json()["data"]}
    known = list(served)
    if model and model not in known:
        raise UserError(f"--model {model}: no such block; there are: {', '.join(known)}")
    if not known:
        raise UserError(f"{url} serves no block yet")
    chosen = model or known[0]
    entry = served[chosen]
    # The title of its model where the server tells one, else a name that clients know it by.
    title = str(entry.get("title") or next(iter(entry.get("names") or ()), "") or chosen)
    return ChatSession(client, chosen, title, entry.get("max_model_len"))


def run_chat(session: ChatSession, lines: TextIO = sys.stdin, out: TextIO = sys.stdout) -> int:
    """Until the end of `lines` or /quit; the exit code is 1 when the last answer failed."""
    terminal = lines.isatty()
    if terminal:
        import readline  # noqa: F401  arrow keys and history in input()

        print(_introduction(session), file=sys.stderr if not out.isatty() else out)
    code = 0
    while (line := _read_line(lines, terminal, out)) is not None:
        text = line.strip()
        if text == "/quit":
            break
        if text.startswith("/"):
            print(_command(session, text), file=out)
        elif text:
            with quiet_keyboard(lines):
                code = _answer(session, text, out)
    return code


def _introduction(session: ChatSession) -> str:
    context = f", context {session.context:,} tokens" if session.context else ""
    block = f"block {session.model} at {session.client.base_url}"
    return f"{session.title}{context}; {block}; /help says what else"


def _read_line(lines: TextIO, terminal: bool, out: TextIO) -> str | None:
    try:
        if terminal and out.isatty():
            return input("\n> ")
        if terminal:
            print("\n> ", end="", file=sys.stderr, flush=True)
        return next(lines)
    except (EOFError, StopIteration):
        return None
    except KeyboardInterrupt:
        return ""


def _command(session: ChatSession, text: str) -> str:
    name, _, rest = text.partition(" ")
    if name == "/reset":
        session.reset()
        return "what was said is forgotten"
    if name == "/system":
        session.system = rest.strip()
        return f"system message: {session.system or 'none'}"
    return _HELP if name == "/help" else f"{name}: no such command\n{_HELP}"


def _answer(session: ChatSession, text: str, out: TextIO) -> int:
    answer = Answer()
    pieces = session.ask(text, answer)
    try:
        for piece in pieces:
            print(piece, end="", file=out, flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", file=out)
        return 0
    except AnswerFailed as error:
        print(f"{chr(10) if answer.text else ''}error: {error}", file=sys.stderr)
        return 1
    finally:
        pieces.close()
    print(file=out)
    if out.isatty() and (figures := answer.figures()):
        print(_dimmed(f"{session.title}: {figures}"), file=out)
    return 0


def _dimmed(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "dumb")
    return text if plain else f"\033[2m{text}\033[0m"


def _refusal(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
