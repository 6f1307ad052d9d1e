"""Steps padded to a graph's rows and keys, in its memory. On a CPU they are computed as any other,
so what is tested is the padding, the filling and the cutting; no GPU has captured one."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
import torch

from runner.sampling_parameters import SamplingParameters
from runner.stage.model import decode_graphs
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.decode_graphs import ROWS, DecodeGraphs
from runner.stage.model.packed_batch import Span, pack
from runner.stage.model.packed_step import StepInputs
from runner.stage.model.stage_model import StageModel
from runner.steps import Admission, Segment, Step
from tests.runner.stage.model.stage_pipeline import StagePipeline, Text
from tests.small_models import LAYERS, OF_EACH_KIND, VOCABULARY, make_small_model

GREEDY = SamplingParameters(temperature=0)


def texts(choice: random.Random) -> list[Text]:
    return [
        Text(
            [choice.randrange(VOCABULARY) for _ in range(choice.randint(2, 10))],
            wanted=choice.randint(3, 36),
            joins=choice.randint(0, 8),
            chunk=6,
        )
        for _ in range(9)
    ]


@pytest.mark.parametrize("architecture", [*OF_EACH_KIND, "gpt_oss"])
def test_every_text_is_what_it_is_without_graphs(architecture: str, tmp_path: Path) -> None:
    make_small_model(architecture, tmp_path)
    plain = StagePipeline(tmp_path, LAYERS, 2)
    graphs = StagePipeline(tmp_path, LAYERS, 2, decode_graphs=True)
    for stage in graphs.stages:
        stage.reserve_kv(500)
    assert graphs.run(texts(random.Random(1))) == plain.run(texts(random.Random(1)))
    for stage in graphs.stages:
        assert stage._graphs is not None
        used = {rows for (rows, _), bucket in stage._graphs._buckets.items() if bucket.replay}
        assert len(used) >= 3, "hardly any step went through them"


@pytest.fixture
def pair(small_llama: Path) -> tuple[StageModel, StageModel]:
    """Without and with graphs, of 20 requests with a prompt each."""
    checkpoint = Checkpoint(small_llama)
    stages = (
        StageModel.load(checkpoint, (0, 6)),
        StageModel.load(checkpoint, (0, 6), decode_graphs=True),
    )
    for stage in stages:
        stage.reserve_kv(20 * 50)
        for request in range(20):
            stage.admit(Admission(request, 50, 3, 0, 0, GREEDY))
            stage.forward(Step(0, (Segment(request, 0, 3, 3, False),), [request, 1, 2]), None)
    return stages


def decode(requests: range, place: int) -> Step:
    segments = tuple(Segment(request, place, 1, place + 1, True) for request in requests)
    return Step(1, segments, [request + place for request in requests])


def both_equal(pair: tuple[StageModel, StageModel], step: Step) -> None:
    plain, graphs = (stage.forward(step, None) for stage in pair)
    assert torch.equal(plain, graphs)


def test_a_row_has_the_same_bits_in_padded_company(pair: tuple[StageModel, StageModel]) -> None:
    for place, count in enumerate((20, 20, 20, 17, 9, 3, 1, 1), 3):
        both_equal(pair, decode(range(count), place))
    buckets = pair[1]._graphs._buckets  # type: ignore[union-attr]
    assert [rows for rows, _ in buckets] == [24, 12, 4, 1]
    assert {keys for _, keys in buckets} == {decode_graphs.LEAST_KEYS}


def test_other_steps_go_without(pair: tuple[StageModel, StageModel]) -> None:
    prompt = Step(1, (Segment(0, 3, 2, 5, True), Segment(1, 3, 1, 4, True)), [7, 8, 9])
    waiting = Step(2, (Segment(2, 3, 1, 5, False), Segment(3, 3, 1, 4, True)), [7, 8])
    scored = Step(3, (Segment(4, 3, 1, 4, True, 1, 9),), [7])
    for step in (prompt, waiting, scored):
        both_equal(pair, step)
    assert not pair[1]._graphs._buckets  # type: ignore[union-attr]


def test_longer_texts_have_graphs_of_their_own(
    pair: tuple[StageModel, StageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_graphs, "LEAST_KEYS", 8)
    for place in range(3, 20):
        both_equal(pair, decode(range(2), place))
    assert list(pair[1]._graphs._buckets) == [(2, 8), (2, 16), (2, 32)]  # type: ignore[union-attr]


def test_memory_that_has_moved_has_graphs_of_its_own(pair: tuple[StageModel, StageModel]) -> None:
    both_equal(pair, decode(range(20), 3))
    both_equal(pair, decode(range(20), 4))
    before = list(pair[1]._graphs._buckets.values())  # type: ignore[union-attr]
    for stage in pair:
        stage.admit(Admission(20, 50, 3, 0, 0, GREEDY))  # more than was reserved
    both_equal(pair, decode(range(20), 5))
    both_equal(pair, decode(range(20), 6))
    assert before != list(pair[1]._graphs._buckets.values())  # type: ignore[union-attr]


def test_what_cannot_be_captured_goes_without_from_then_on(
    pair: tuple[StageModel, StageModel],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(pair[1]._graphs, "_capture", refuse)
    with caplog.at_level(logging.WARNING):
        for place in range(3, 8):
            both_equal(pair, decode(range(5), place))
    assert [record.message for record in caplog.records] == [
        "computed without graphs from now on: operation not permitted when stream is capturing"
    ]
    assert not pair[1]._graphs._buckets  # type: ignore[union-attr]


def test_more_rows_than_any_graph_has_go_without(pair: tuple[StageModel, StageModel]) -> None:
    def never(_: StepInputs) -> torch.Tensor:
        raise AssertionError

    graphs = DecodeGraphs(never, pair[1]._pool, decode_graphs.compute_again)
    batch = pack(Span(row, 1, 0, row) for row in range(ROWS[-1] + 1))
    assert graphs.run(batch, [1] * batch.rows, None) is None
    assert graphs.run(pack(()), [], None) is None
