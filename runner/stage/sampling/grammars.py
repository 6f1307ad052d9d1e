"""What the next token of a request with a grammar may be.

Found on threads, beside the stage's layers: a grammar that takes long to build, or one whose ids
take long to find, keeps nobody else waiting. Who is not done when a step is sampled has no token.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
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
_BUILDING, _MASKING = 4, 4  # threads
_KEPT = 16  # grammars that were built, for further requests
_LEXER_STATES = 25_000  # of one grammar, up to 2 kB each
_BUILDERS_NICENESS = 19


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
        # Whoever has the interpreter's lock must not be one that gets no processor.
        self._maskers = ThreadPoolExecutor(_MASKING, "mask")
        self._one = threading.Lock()
        self._tokenizer: Future[LLTokenizer] | None = None
        self._built: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, admission: Admission) -> Followed:
        return Followed(self, admission)

    def place(self, text: str, end: int) -> Future[LLMatcher]:
        """At the beginning of a grammar; `end` is an id that ends a text. Raises Ungrammatical."""
        return self._builders.submit(self.build, text, end)

    def soon(self, work: Callable[[], None]) -> None:
        self._maskers.submit(work)

    def build(self, text: str, end: int) -> LLMatcher:
        """On a builder."""
        with self._one:
            if (built := self._built.get(text)) is not None:
                self._built.move_to_end(text)
                return built.deep_copy()
            if self._tokenizer is None:
                self._tokenizer = self._maskers.submit(_read, self._file, end)
        built = self._new(text)
        with self._one:
            self._built[text] = built
            while len(self._built) > _KEPT:
                self._built.popitem(last=False)
            return built.deep_copy()

    def build_apart(self, text: str) -> LLMatcher:
        """One that shares nothing. Copies have one lexer, and its states are counted for all of
        them: what one answer took is missing to every other, so those built so far are forgotten
        too."""
        with self._one:
            self._built.pop(text, None)
        return self._new(text)

    def _new(self, text: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        assert self._tokenizer is not None
        limits = LLParserLimits(max_lexer_states=_LEXER_STATES, verbose_errors=False)
        built = LLMatcher(self._tokenizer.result(), text, log_level=0, limits=limits)
        if built.is_error():
            raise Ungrammatical(GrammarFault.UNBUILT)
        return built

    @property
    def never_text(self) -> int:
        """What the library takes for the end of any text."""
        assert self._tokenizer is not None
        return self._tokenizer.result().eos_token


def _read(file: Path, end: int) -> LLTokenizer:
    """In parts: the library holds the interpreter's lock for each, 0.1 s at 49k ids."""
    from llguidance import LLTokenizer

    try:
        text = _without_merges(file.read_text("utf-8"))
        try:
            whole = LLTokenizer(text, eos_token=end, slices=[])
        except ValueError:  # another file than tokenizer.json has that token
            whole = LLTokenizer(text, slices=[])
        return whole.with_slices(LLTokenizer.general_slices())
    except (OSError, ValueError, KeyError) as error:
        logger.error("no answer can be held to a form: %s: %s", file, error)
        raise Ungrammatical(GrammarFault.UNBUILT) from error


def _without_merges(text: str) -> str:
    """Only how texts become ids depends on them, and they take half of the time."""
    document = json.loads(text)
    if document["model"].get("type") == "BPE":
        document["model"]["merges"] = []
    return json.dumps(document)


class Followed:
    """One request's place in its grammar, which the ids behind its prompt follow. Its stop ids may
    come where the grammar may end; the last of them is the model's own."""

    def __init__(self, grammars: Grammars, admission: Admission) -> None:
        self._grammars, self._text = grammars, admission.grammar
        stops = admission.sampling.stop_token_ids
        self._ends = [end for end in stops if end < grammars.vocab_size]
        self._place: Future[LLMatcher] | None = None
        self._ids: list[int] = []  # that it was given
        self._apart = False  # its matcher shares nothing
        self._known = admission.prompt_length
        self.answered: Future[torch.Tensor] = Future()

    def ask(self, ids: Sequence[int], known: int) -> None:
        """What may come after the first `known` of the request's ids? Asked again, of as many, it
        is one question."""
        first = self._place is None
        if not first and known == self._known:
            return
        assert first or self.answered.done()
        # Those that came before an admission are somebody's word.
        fault = GrammarFault.NOT_FOLLOWED if first else GrammarFault.TOO_COMPLEX
        fresh, answered = list(ids[self._known : known]), Future[torch.Tensor]()
        self._known, self.answered = known, answered
        if self._place is None:
            end = self._ends[-1] if self._ends else 0
            self._place = self._grammars.place(self._text, end)

        def find(place: Future[LLMatcher]) -> None:
            self._grammars.soon(lambda: self._find(place, fresh, fault, answered))

        self._place.add_done_callback(find)

    def answer(self) -> torch.Tensor | None:
        """The ids, ascending; None while they are not known. Raises Ungrammatical."""
        return self.answered.result() if self.answered.done() else None

    def _find(
        self,
        place: Future[LLMatcher],
        fresh: list[int],
        fault: GrammarFault,
        answered: Future[torch.Tensor],
    ) -> None:
        """On a thread, one question at a time."""
        try:
            answered.set_result(self._found(place.result(), fresh, fault))
        except Ungrammatical as error:
            logger.warning("an answer cannot be held to its form: %s", error)
            answered.set_exception(error)
        except BaseException:  # what Rust panics with is no Exception
            logger.exception("a grammar cannot be followed")
            answered.set_exception(Ungrammatical(GrammarFault.TOO_COMPLEX))

    def _found(self, matcher: LLMatcher, fresh: list[int], fault: GrammarFault) -> torch.Tensor:
        self._ids += fresh
        try:
            return self._allowed(matcher, fresh, fault)
        except Ungrammatical:
            if self._apart:
                raise
        self._apart, self._place = True, Future()
        matcher = self._grammars.build_apart(self._text)
        self._place.set_result(matcher)
        return self._allowed(matcher, self._ids, fault)

    def _allowed(self, matcher: LLMatcher, ids: list[int], fault: GrammarFault) -> torch.Tensor:
        if ids and not matcher.consume_tokens(ids):
            raise Ungrammatical(fault)
        allowed = np.zeros(self._grammars.vocab_size, np.uint8)
        if not matcher.is_stopped():
            words = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            bits = np.unpackbits(words, bitorder="little")
            bits[self._grammars.never_text] = False
            allowed[: len(bits)] = bits[: len(allowed)]
        if matcher.is_error():
            raise Ungrammatical(GrammarFault.TOO_COMPLEX)
        if matcher.is_accepting():
            allowed[self._ends] = True
        found = np.flatnonzero(allowed)
        if not len(found):
            raise Ungrammatical(GrammarFault.DEAD_END)
        return torch.from_numpy(found)


def wait(asked: Sequence[Followed], *, alone: bool) -> None:
    """For a moment, for those that are not answered; `alone`: the step has no others to sample."""
    pending = [followed.answered for followed in asked if not followed.answered.done()]
    if pending:
        wait_for(pending, PATIENCE_ALONE_S if alone else PATIENCE_S)


def _be_nice() -> None:
    """What is computed goes first. Linux has it by thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BUILDERS_NICENESS)
