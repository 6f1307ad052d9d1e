"""Stages in one process, hidden states passed by hand, and a scheduler small enough to read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from runner.sampling_parameters import SamplingParameters
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.steps import Admission, Segment, Step

GREEDY = SamplingParameters(temperature=0)


@dataclass
class Text:
    """One request: joins at step `joins`, its prompt goes in by chunks of `chunk` ids, after what
    it has in common with the text `donor`. That one's slot ends with it where it `ends_donor`."""

    prompt: list[int]
    wanted: int
    joins: int = 0
    chunk: int = 10**6
    donor: int | None = None
    ends_donor: bool = False
    ids: list[int] = field(default_factory=list)
    done: int = 0

    @property
    def output(self) -> list[int]:
        return self.ids[len(self.prompt) :]


class StagePipeline:
    """Every layer of a model, split evenly over `ranks` stages."""

    def __init__(
        self, folder: Path, layers: int, ranks: int, *, decode_graphs: bool = False
    ) -> None:
        borders = [layers * rank // ranks for rank in range(ranks + 1)]
        self.stages = [
            StageModel.load(Checkpoint(folder), pair, decode_graphs=decode_graphs)
            for pair in itertools.pairwise(borders)
        ]
        self.reused = 0

    def run(self, texts: list[Text]) -> list[list[int]]:
        """Greedy outputs. Texts join and leave while the others go on."""
        for text in texts:
            text.ids, text.done = list(text.prompt), 0
        for number in itertools.count():
            active = [
                (request, text)
                for request, text in enumerate(texts)
                if text.joins <= number and len(text.output) < text.wanted
            ]
            if not active and all(text.joins <= number for text in texts):
                break
            if active:
                self._step(active, texts, number)
        for stage in self.stages:
            stage.reset()
        return [text.output for text in texts]

    def _step(self, active: list[tuple[int, Text]], texts: list[Text], number: int) -> None:
        segments, token_ids = [], []
        for request, text in active:
            if text.done == 0:
                self._admit(request, text, texts)
            boundary = self.stages[0].rope_boundary
            if boundary is not None and text.done == boundary and len(text.ids) == boundary + 1:
                text.done = 0  # the long factors hold from here on: computed anew
                self._admit(request, text, ())
            end = min(len(text.ids), text.done + text.chunk)
            sample = end == len(text.ids)
            segments.append(Segment(request, text.done, end - text.done, len(text.ids), sample))
            token_ids.extend(text.ids[text.done : end])
            text.done = end
        step = Step(number, tuple(segments), token_ids)
        hidden = None
        for stage in self.stages:
            received = None if hidden is None else hidden.clone()
            output = stage.forward(step, hidden)
            if received is not None:  # a stage computes from it again when memory was short
                assert torch.equal(received, hidden)
            hidden = output
        assert hidden is not None
        assert hidden.shape == (step.sampled_rows, self.stages[-1].vocab_size)
        best = iter(hidden.argmax(-1).tolist())
        for segment in segments:
            if segment.sample:
                text = texts[segment.request]
                text.ids.append(next(best))
                if len(text.output) == text.wanted and not any(
                    other.donor == segment.request and not other.done for other in texts
                ):
                    for stage in self.stages:
                        stage.release(segment.request)

    def _admit(self, request: int, text: Text, texts: Sequence[Text]) -> None:
        capacity = len(text.prompt) + text.wanted
        if texts and text.donor is not None:
            donor = texts[text.donor]
            if self._is_long(donor) == self._is_long(text):
                pairs = zip(donor.ids[: donor.done], text.prompt[:-1], strict=False)
                alike = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
                text.done = len(list(alike))
                self.reused += text.done
        for stage in self.stages:
            admission = Admission(
                request,
                capacity,
                len(text.prompt),
                0,
                0,
                GREEDY,
                donor=text.donor or 0,
                reused=text.done,
            )
            stage.admit(admission, ends_donor=text.ends_donor)
            if text.ends_donor:
                stage.release(admission.donor)

    def _is_long(self, text: Text) -> bool:
        """Its rotary factors are the long ones."""
        boundary = self.stages[0].rope_boundary
        return boundary is not None and len(text.ids) > boundary
