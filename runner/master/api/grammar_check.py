"""Whether a form that is asked for can be served: judged by a program that may be ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from contract.faults import MISSING
from runner.errors import InvalidField
from runner.grammar import Grammar
from runner.master.api.grammar_fields import AskedGrammar

PROGRAM = Path(__file__).with_name("grammar_program.py")
AT_A_TIME = 2
_KNOWN_BYTES = 8 * 2**20  # of the texts whose verdict is remembered
_INSTEAD = "; make it simpler, or ask without it"

_Verdict = dict[str, Any]


class GrammarCheck:
    """A grammar's cost is known when it has been built, and nothing can end a thread that builds
    one. A program that it ends is started again with the next; the verdicts are remembered. Forms
    of one domain wait for one another, so that nobody alone keeps the programs from the others."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_A_TIME, "grammar-check")
        self._own = threading.local()
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._known: OrderedDict[tuple[str, str], _Verdict] = OrderedDict()
        self._known_bytes = 0

    async def check(self, asked: AskedGrammar, domain: str = "") -> Grammar:
        """Raises InvalidField."""
        key = (asked.kind, asked.text)
        verdict = self._known.get(key)
        if verdict is None:
            verdict = await self._judged(key, domain)
        else:
            self._known.move_to_end(key)
        if (error := verdict.get("error")) is not None:
            raise InvalidField(asked.field, MISSING, f"cannot be served: {error}{_INSTEAD}")
        return Grammar.of([verdict["parts"]], asked.field)

    async def _judged(self, key: tuple[str, str], domain: str) -> _Verdict:
        turns = self._turns.setdefault(domain, asyncio.Semaphore(AT_A_TIME))
        async with turns:
            if (known := self._known.get(key)) is not None:  # meanwhile
                return known
            loop = asyncio.get_running_loop()
            verdict = await loop.run_in_executor(self._threads, self._judge, *key)
            self._remember(key, verdict)
            return verdict

    def _remember(self, key: tuple[str, str], verdict: _Verdict) -> None:
        if key not in self._known:
            self._known_bytes += len(key[1])
        self._known[key] = verdict
        while self._known_bytes > _KNOWN_BYTES:
            self._known_bytes -= len(self._known.popitem(last=False)[0][1])

    def _judge(self, kind: str, text: str) -> _Verdict:
        """On one of the threads, each of which has a program."""
        program: subprocess.Popen[str] | None = getattr(self._own, "program", None)
        if program is None or program.poll() is not None:  # somebody may have ended it meanwhile
            program = self._own.program = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            print(json.dumps([kind, text]), file=program.stdin, flush=True)
            answer = program.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            verdict: _Verdict = json.loads(answer)
            return verdict
        self._own.program = None
        program.kill()
        with contextlib.suppress(BrokenPipeError), program:
            pass
        return {"error": "to find out what it means takes too long, or too much memory"}
