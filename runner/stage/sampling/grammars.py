"""What the next token of a request with a grammar may be.

Found on threads, beside the stage's layers: a grammar that takes long to build, or one whose ids
take long to find, keeps nobody else waiting. Who is not done when a step is sampled has no token.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from runner.grammar import GrammarFault
from runner.steps import Admission

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)

# How long a step is held up for those of its masks that are not there yet: where there is nothing
# else to sample in it, and where there is.
PATIENCE_ALONE_S, PATIENCE_S = 0.02, 0.002
_BUILDING, _MASKING = 2, 4  # threads
_KEPT = 16  # grammars that were built, for further requests
_LEXER_STATES = 25_000  # of one grammar, up to 2 kB each
_BUILDERS_NICENESS = 10


class Ungrammatical(Exception):
    """A request that cannot go on."""

    def __init__(self, fault: GrammarFault) -> None:
        self.fault = fault
        super().__init__(fault.name)


class Grammars:
    """Those of one model, whose tokenizer is read with the first one."""

    def __init__(self, tokenizer: Path, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._file = tokenizer
        self._builders = ThreadPoolExecutor(_BUILDING, "grammar", _be_nice)
        self._maskers = ThreadPoolExecutor(_MASKING, "mask")
        self._one = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._built: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, admission: Admission) -> Followed:
        return Followed(self, admission)

    def submit(self, followed: Followed, ids: Sequence[int]) -> Future[torch.Tensor]:
        threads = self._maskers if followed.built else self._builders
        return threads.submit(followed.allowed_after, ids)

    def build(self, text: str, end: int) -> LLMatcher:
        """On one of the builders; raises Ungrammatical. `end` is an id that ends a text."""
        from llguidance import LLMatcher, LLParserLimits

        with self._one:
            if (built := self._built.get(text)) is not None:
                self._built.move_to_end(text)
                return built.deep_copy()
            if self._tokenizer is None:
                self._tokenizer = _read(self._file, end)
        limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        built = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
        if built.is_error():
            logger.error("a grammar cannot be built: %s", built.get_error())
            raise Ungrammatical(GrammarFault.UNBUILT)
        with self._one:
            self._built[text] = built
            while len(self._built) > _KEPT:
                self._built.popitem(last=False)
            return built.deep_copy()

    @property
    def never_text(self) -> int:
        """What the library takes for the end of any text."""
        assert self._tokenizer is not None
        return self._tokenizer.eos_token


def _read(file: Path, end: int) -> LLTokenizer:
    from llguidance import LLTokenizer

    try:
        text = file.read_text("utf-8")
        try:
            return LLTokenizer(text, eos_token=end)
        except ValueError:  # another file than tokenizer.json has that token
            return LLTokenizer(text)
    except (OSError, ValueError) as error:
        logger.error("no grammar can be followed: %s: %s", file, error)
        raise Ungrammatical(GrammarFault.UNBUILT) from error


class Followed:
    """One request's place in its grammar, which the ids behind its prompt follow. Its stop ids may
    come where the grammar may end; the last of them is the model's own."""

    def __init__(self, grammars: Grammars, admission: Admission) -> None:
        self._grammars, self._text = grammars, admission.grammar
        stops = admission.sampling.stop_token_ids
        self._ends = [end for end in stops if end < grammars.vocab_size]
        self._matcher: LLMatcher | None = None
        self._known, self._asked = admission.prompt_length, False
        self._answer: Future[torch.Tensor] = Future()

    @property
    def built(self) -> bool:
        return self._matcher is not None

    def ask(self, ids: Sequence[int], known: int) -> None:
        """What may come after the first `known` of the request's ids? Asked again, of as many, it
        is one question."""
        if self._asked and known == self._known:
            return
        assert self._answer.done() or not self._asked
        fresh = list(ids[self._known : known])
        self._known, self._asked = known, True
        self._answer = self._grammars.submit(self, fresh)

    def answer(self) -> torch.Tensor | None:
        """The ids, ascending; None while they are not known. Raises Ungrammatical."""
        return self._answer.result() if self._answer.done() else None

    @property
    def pending(self) -> Future[torch.Tensor]:
        return self._answer

    def allowed_after(self, ids: Sequence[int]) -> torch.Tensor:
        """On a thread, one question at a time; `ids` are those since the last one."""
        try:
            return self._allowed_after(ids)
        except Ungrammatical:
            raise
        except BaseException as error:  # what Rust panics with is no Exception
            logger.exception("a grammar cannot be followed")
            raise Ungrammatical(GrammarFault.TOO_COMPLEX) from error

    def _allowed_after(self, ids: Sequence[int]) -> torch.Tensor:
        if not self._ends:
            raise Ungrammatical(GrammarFault.UNBUILT)
        if self._matcher is None:
            self._matcher = self._grammars.build(self._text, self._ends[-1])
        matcher = self._matcher
        if ids and not matcher.consume_tokens(list(ids)):
            raise Ungrammatical(GrammarFault.NOT_FOLLOWED)
        allowed = np.zeros(self._grammars.vocab_size, np.uint8)
        if not matcher.is_stopped():
            words = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            bits = np.unpackbits(words, bitorder="little")
            bits[self._grammars.never_text] = False
            allowed[: len(bits)] = bits[: len(allowed)]
        if matcher.is_error():
            logger.error("a grammar cannot be followed: %s", matcher.get_error())
            raise Ungrammatical(GrammarFault.TOO_COMPLEX)
        if matcher.is_accepting():
            allowed[self._ends] = True
        found = np.flatnonzero(allowed)
        if not len(found):
            raise Ungrammatical(GrammarFault.DEAD_END)
        return torch.from_numpy(found)


def wait(asked: Sequence[Followed], *, alone: bool) -> None:
    """For a moment, for those that are not answered; `alone`: the step has no others to sample."""
    pending = [followed.pending for followed in asked if not followed.pending.done()]
    if pending:
        wait_for(pending, PATIENCE_ALONE_S if alone else PATIENCE_S)


def _be_nice() -> None:
    """Linux has it by thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BUILDERS_NICENESS)
