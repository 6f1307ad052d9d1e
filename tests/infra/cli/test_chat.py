"""`splitstack chat` on a terminal and in pipes, with a small server that answers slowly."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from tests.interrupts import heed_interrupts

LIMIT_S = 60.0
MODEL = {"id": "a-block", "title": "A-Model", "max_model_len": 4096, "names": []}


class Server:
    """Its answers have two words, the second once `go` is set; `asked` are the last messages."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._head("application/json")
                self.wfile.write(json.dumps({"data": [MODEL]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append(body["messages"][-1]["content"])
                self._head("text/event-stream")
                self._say({"choices": [{"delta": {"content": "first"}}]})
                server.go.wait(LIMIT_S)
                self._say({"choices": [{"delta": {"content": " second"}}]})
                self._say({"choices": [], "usage": {"completion_tokens": 2}})
                self.wfile.write(b"data: [DONE]\n\n")

            def _head(self, kind: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()

            def _say(self, chunk: dict[str, Any]) -> None:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


class Terminal:
    """The command on a terminal of its own, which tells no size."""

    def __init__(self, url: str, **environment: str) -> None:
        self.own, theirs = pty.openpty()
        known = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "chat", "--url", url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=heed_interrupts,
            env=known | {"TERM": "xterm"} | environment,
        )
        os.close(theirs)
        self.screen = ""

    def type(self, text: str) -> None:
        data = text.encode()
        while data:
            self._read(0)
            if select.select([], [self.own], [], 0.1)[1]:
                data = data[os.write(self.own, data[:512]) :]

    def wait_for(self, text: str) -> str:
        """What came until the text did, which is then gone."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} not in {self.screen[-2000:]!r}"
            self._read(0.1)
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def interrupt_at_the_prompt(self) -> None:
        """Ctrl-C once the prompt's read has begun.

        `input()` shows its prompt before it waits, and a signal between the two stays unseen until
        the next key.
        """
        process = psutil.Process(self.process.pid)
        deadline = time.monotonic() + LIMIT_S
        while process.status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < deadline, process.status()
            time.sleep(0.01)
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Ctrl-D at the prompt; the exit code."""
        self.type("\x04")
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.screen[-2000:]
            self._read(0.1)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.own)

    def _read(self, limit_s: float) -> None:
        try:
            if select.select([self.own], [], [], limit_s)[0]:
                self.screen += os.read(self.own, 65536).decode("utf-8", "replace")
        except OSError:  # the other end is closed
            time.sleep(limit_s)


@pytest.fixture
def terminal(server: Server) -> Iterator[Terminal]:
    found = Terminal(server.url)
    yield found
    found.close()


def test_the_model_is_named_with_a_speed_line(server: Server, terminal: Terminal) -> None:
    server.go.set()
    terminal.wait_for("A-Model, context 4,096 tokens; block a-block at ")
    terminal.wait_for("\n> ")
    terminal.type("hello\n")
    terminal.wait_for("first second")
    terminal.wait_for("A-Model: 2 tokens, ")
    terminal.wait_for("\n> ")
    assert terminal.end() == 0


def test_what_is_typed_during_an_answer_is_the_next_question(
    server: Server, terminal: Terminal
) -> None:
    terminal.wait_for("\n> ")
    terminal.type("one\n")
    terminal.wait_for("first")
    long = "three " * 1000
    terminal.type(f"two\n{long}\n")
    server.go.set()
    assert "two" not in terminal.wait_for(" second")
    terminal.wait_for("first second")
    terminal.wait_for("first second")
    terminal.wait_for("\n> ")
    assert terminal.end() == 0
    assert server.asked == ["one", "two", long.strip()]


def test_control_c_stops_the_answer_and_keeps_what_was_typed(
    server: Server, terminal: Terminal
) -> None:
    terminal.wait_for("\n> ")
    terminal.interrupt_at_the_prompt()  # nothing ends
    terminal.wait_for("\n> ")
    terminal.type("one\n")
    terminal.wait_for("first")
    terminal.type("two\n")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("(stopped)")
    terminal.wait_for("first")
    server.go.set()
    terminal.wait_for(" second")
    terminal.wait_for("\n> ")
    assert terminal.end() == 0
    assert server.asked == ["one", "two"]


def test_ten_thousand_pasted_lines_are_one_message(server: Server, terminal: Terminal) -> None:
    """A terminal puts what is pasted into brackets."""
    server.go.set()
    terminal.wait_for("\n> ")
    pasted = "\n".join(f"line {number}" for number in range(10_000))
    terminal.type(f"\x1b[200~{pasted}\x1b[201~\n")
    terminal.wait_for("first second")
    terminal.wait_for("\n> ")
    assert terminal.end() == 0
    assert server.asked == [pasted]


def test_no_color(server: Server) -> None:
    server.go.set()
    terminal = Terminal(server.url, NO_COLOR="1")
    try:
        terminal.wait_for("\n> ")
        terminal.type("hello\n")
        assert "\x1b[2m" not in terminal.wait_for("tokens/s")
    finally:
        terminal.close()


def test_a_pipe_with_cut_utf_8(server: Server) -> None:
    server.go.set()
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "chat", "--url", server.url],
        input="é".encode()[:1] + b" one\n\ntwo\n",
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"first second\n" * 2
    assert server.asked == ["\ufffd one", "two"]
