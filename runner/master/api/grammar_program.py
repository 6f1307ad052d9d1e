"""Judges grammars: a program that imports nothing of ours, run by grammar_check.py.

A line in, [kind, text] as JSON; a line out, {"parts": ...} or {"error": ...}. One that takes longer
than LIMIT_S of a processor, or more memory than MEMORY_BYTES, ends the program.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, grammar_from

LIMIT_S = 1.0
MEMORY_BYTES = 256 * 2**20
# Smaller than that of a stage's threads: what passes here passes there.
_STACK_BYTES = 4 * 2**20
_LONGEST_REASON = 300


class _Bytes:
    """A vocabulary of the bytes and an end: whatever the model's is, it spells them."""

    eos_token_id = 256
    bos_token_id = None
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]
    special_token_ids = [256]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def parts(kind: Any, text: str) -> dict[str, Any]:
    """One of llguidance's grammars; raises ValueError for what it cannot serve."""
    text = grammar_from(kind, text)
    failed, [*messages] = LLMatcher.validate_grammar_with_warnings(text)
    if failed:
        raise ValueError(messages[0])
    _begin(text)
    if not text.startswith("{"):
        return {"lark_grammar": text}
    [found] = json.loads(text)["grammars"]
    return {name: value for name, value in found.items() if value is not None and name != "name"}


_TOKENIZER = LLTokenizer(TokenizerWrapper(_Bytes()))


def _begin(text: str) -> None:
    """Raises ValueError where nothing can be written, or it is not found out what can."""
    matcher = LLMatcher(_TOKENIZER, text, log_level=0)
    may_be_empty = matcher.is_accepting()
    matcher.compute_bitmask()
    fault = matcher.get_error().partition("\n")[0]
    if matcher.is_stopped() and "NoExtension" in (fault or matcher.stop_reason()):
        fault = "" if may_be_empty else "nothing can be written that follows it"
    if fault:
        raise ValueError(fault)


def _judge(line: str) -> dict[str, Any]:
    try:
        return {"parts": parts(*json.loads(line))}
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
    except BaseException as error:  # what Rust panics with is no Exception
        said = type(error).__name__
    return {"error": said[:_LONGEST_REASON]}


def _serve() -> None:
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        answer = json.dumps(_judge(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


def main() -> None:
    os.nice(19)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
