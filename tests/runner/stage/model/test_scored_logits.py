"""What the last stage says of a prompt's own ids: transformers' log_softmax, in whatever chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runner.sampling_parameters import SamplingParameters
from runner.stage.model import stage_model
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.stage.sampling.sampler import Sampler
from runner.steps import Admission, SampledToken, Segment, Step
from tests.lanes import each_once
from tests.small_models import (
    ARCHITECTURES,
    LAYERS,
    OF_EACH_KIND,
    VOCABULARY,
    make_small_model,
)

torch.set_num_threads(1)
CHUNKS = ((23, 6), (1, 28), (10, 10, 9), (2, 1, 26))


def expected(model: Callable[..., object], ids: list[int]) -> torch.Tensor:
    """[len(ids) - 1, vocabulary]"""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits  # type: ignore[attr-defined]
    return torch.log_softmax(logits[0, :-1].float(), dim=-1)


class Bench:
    """All stages of a model; hidden states passed by hand."""

    def __init__(self, folder: Path, ranks: int) -> None:
        borders = [LAYERS * rank // ranks for rank in range(ranks + 1)]
        self.stages = [
            StageModel.load(Checkpoint(folder), pair) for pair in itertools.pairwise(borders)
        ]
        self.sampler = Sampler(VOCABULARY, "cpu")

    def admit(self, request: int, prompt: list[int], wanted: int) -> None:
        sampling = SamplingParameters(temperature=0, logprobs=wanted)
        admission = Admission(request, len(prompt) + 4, len(prompt), 0, 0, sampling)
        self.sampler.admit(admission)
        for stage in self.stages:
            stage.admit(admission)

    def run(self, step: Step) -> tuple[list[SampledToken], list[SampledToken]]:
        hidden = None
        for stage in self.stages:
            hidden = stage.forward(step, hidden)
        assert hidden is not None
        tokens = self.sampler.sample(step, hidden)
        return tokens, self.sampler.score(step, self.stages[-1].scored_logits(step))


def check(found: list[SampledToken], raw: torch.Tensor, ids: list[int], wanted: int) -> None:
    assert [token.position for token in found] == list(range(1, len(ids)))
    assert [token.token_id for token in found] == ids[1:]
    for row, token in zip(raw, found, strict=True):
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=2e-5)
        best = row.topk(wanted)
        values = [logprob for _, logprob in token.alternatives]
        assert values == pytest.approx(best.values.tolist(), abs=2e-5)
        assert [int(row.argmax())] * bool(wanted) == [key for key, _ in token.alternatives[:1]]


@pytest.mark.parametrize(
    ("architecture", "ranks"), each_once(ARCHITECTURES, (1, 2, 4), OF_EACH_KIND)
)
def test_equal_to_transformers(
    architecture: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two prompts in one step, chunk by chunk, beside a third that decodes."""
    monkeypatch.setattr(stage_model, "SCORED_AT_ONCE", 4 * VOCABULARY * 7)
    model = make_small_model(architecture, tmp_path)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(1, VOCABULARY, (29,), generator=generator).tolist() for _ in range(2)]
    bench = Bench(tmp_path, ranks)
    for chunks in CHUNKS:
        for request, prompt in enumerate(prompts):
            bench.admit(request, prompt, wanted=5 * request)
        bench.admit(9, prompts[0], -1)
        scored: list[SampledToken] = []
        start = 0
        for length in chunks:
            end = start + length
            last = end == 29
            segments = [
                Segment(request, start, length, 29, last, length - last, 0 if last else prompt[end])
                for request, prompt in enumerate(prompts)
            ]
            other = Segment(9, start, length, 29, True)
            ids = [*prompts[0][start:end], *prompts[0][start:end], *prompts[1][start:end]]
            step = Step(start, (segments[0], other, segments[1]), ids)
            tokens, found = bench.run(step)
            assert len(tokens) == (3 if last else 1)
            scored += found
            start = end
        for request, prompt in enumerate(prompts):
            own = [token for token in scored if token.request == request]
            check(own, expected(model, prompt), prompt, 5 * request)


def test_a_stage_computes_on_after_a_score_that_was_given_up(tmp_path: Path) -> None:
    """Whatever happens in its middle, its layers are the model's own again."""
    model = make_small_model("llama", tmp_path)
    bench = Bench(tmp_path, 1)
    prompt = list(range(5, 25))
    step = Step(1, (Segment(1, 0, 20, 20, True, 19),), prompt)
    for _ in range(2):
        bench.admit(1, prompt, 1)
        bench.stages[0].forward(step, None)
        parts = bench.stages[0].scored_logits(step)
        next(parts)
        parts.close()
    bench.admit(1, prompt, 1)
    _, scored = bench.run(step)
    check(scored, expected(model, prompt), prompt, 1)


def test_scores_that_are_no_numbers_are_the_worst(tmp_path: Path) -> None:
    make_small_model("llama", tmp_path)
    bench = Bench(tmp_path, 1)
    bench.admit(1, [5, 6, 7], 2)
    step = Step(1, (Segment(1, 0, 3, 3, True, 2),), [5, 6, 7])
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 3], logits[1, 7] = float("nan"), float("inf")
    found = bench.sampler.score(step, [logits])
    assert found[0].logprob == pytest.approx(-torch.tensor(VOCABULARY - 1.0).log().item())
    assert all(token_id != 3 for token_id, _ in found[0].alternatives)
    assert (found[1].logprob, found[1].alternatives[0]) == (0, (7, 0))
