"""`splitstack chat` and `splitstack status --watch` in a real terminal, with the real stack."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.local_stack import LocalStack
from tests.interrupts import heed_interrupts

pytestmark = pytest.mark.slow
LONG = "Write a very long story about a road that never ends."


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, stack: LocalStack, *arguments: str) -> None:
        own, theirs = pty.openpty()
        self._descriptor = own
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *arguments],
            cwd=stack.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=heed_interrupts,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"},
        )
        os.close(theirs)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, pattern: str, limit_s: float = 60) -> str:
        """What came until the pattern did, which is then gone."""
        deadline = time.monotonic() + limit_s
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < deadline, f"{pattern!r} not in {self.screen!r}"
            if select.select([self._descriptor], [], [], 0.2)[0]:
                self.screen += os.read(self._descriptor, 65536).decode("utf-8", "replace")
        seen, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return seen

    def end(self) -> int:
        code = self.process.wait(60)
        os.close(self._descriptor)
        return code


@contextmanager
def terminal(stack: LocalStack, *arguments: str) -> Iterator[Terminal]:
    opened = Terminal(stack, *arguments)
    try:
        yield opened
    finally:
        if opened.process.poll() is None:
            opened.process.kill()
            opened.process.wait()


def test_a_conversation(local_stack: LocalStack) -> None:
    options = ("-s", "local", "--temperature", "0", "--max-tokens", "24")
    with terminal(local_stack, "chat", *options) as screen:
        screen.wait_for("/help says what else")
        screen.wait_for("> ")
        screen.type("What is the capital of France?\n")
        screen.wait_for("Paris")
        screen.wait_for(r"\d+ tokens, [\d.]+ tokens/s")
        screen.type("/reset\n")
        screen.wait_for("what was said is forgotten")
        screen.type("/system Answer in capitals.\n")
        screen.wait_for("system message: Answer in capitals.")
        screen.type("/nonsense\n")
        screen.wait_for("no such command")
        screen.type("/quit\n")
        assert screen.end() == 0


def test_control_c_stops_the_answer_and_the_computing(local_stack: LocalStack) -> None:
    with terminal(local_stack, "chat", "-s", "local", "--temperature", "0") as screen:
        screen.wait_for("> ")
        screen.type(LONG + "\n")
        screen.wait_for(r"\w+ \w+ \w+ \w+ \w+ \w+ \w+[^>]*\n?", 60)
        time.sleep(1)
        screen.process.send_signal(signal.SIGINT)
        screen.wait_for(r"\(stopped\)")
        screen.wait_for("> ")
        screen.type("\x04")
        assert screen.end() == 0


def test_lines_of_a_pipe_are_answered(local_stack: LocalStack) -> None:
    command = [sys.executable, "-m", "infra.cli", "chat", "--url", local_stack.url]
    done = subprocess.run(
        [*command, "--temperature", "0", "--max-tokens", "24"],
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-s", "local", "--url", "http://127.0.0.1:9"), "--stack and --url: give either"),
        (("--url", "http://127.0.0.1:9"), "cannot be reached"),
        (("-s", "local", "--model", "other"), "no such block; there are: pytorch-block-3"),
    ],
)
def test_what_cannot_be_talked_to_is_said(
    local_stack: LocalStack, arguments: tuple[str, ...], reason: str
) -> None:
    done = local_stack.run("chat", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr


def test_the_status_is_live_and_shows_the_pipeline(local_stack: LocalStack) -> None:
    with terminal(local_stack, "status", "-s", "local", "--watch") as screen:
        screen.wait_for(r"stage-1\s+\d+")
        screen.wait_for(r"0 requests running, 0 waiting")
        screen.wait_for(r"rank\s+node\s+device\s+layers")
        screen.wait_for(r"[\d.]+ tokens/s")  # needs a second look
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == 0
