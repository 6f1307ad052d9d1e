"""The cut of the layers is the best there is, and what does not fit is told."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.memory import PROCESS_BYTES, STEP_BYTES
from contract.models import TIED_COPY_LIMIT_BYTES
from infra.plan.layers import PlanError, RankResources, plan_layers
from infra.plan.model_shape import ModelShape
from tests.lanes import examples

# What every rank needs beside weights and KV; the models here are of bytes.
RESERVED = PROCESS_BYTES + STEP_BYTES


def shape_of(layers, *, embedding=10, head=10, tied=False, kv=2):
    return ModelShape(
        model_type="llama",
        num_layers=len(layers),
        hidden_size=1,
        vocab_size=1,
        layer_parameters=tuple(layers),
        kv_values_per_token=(kv,) * len(layers),
        embedding_parameters=embedding,
        head_parameters=head,
        end_parameters=1,
        tied=tied,
        max_positions=100,
        dtype="float32",
    )


def plan(shape, resources, max_model_len=10):
    return plan_layers(shape, resources, "float32", max_model_len)


def step_time(shape, resources, cuts):
    """The slowest rank of a cut, from the definition."""
    bounds = [0, *cuts, shape.num_layers]
    times = []
    for rank, (start, end) in enumerate(pairwise(bounds)):
        parameters = sum(shape.layer_parameters[start:end])
        if rank == len(resources) - 1:
            parameters += shape.head_parameters + shape.end_parameters
        times.append(parameters * 4 / resources[rank].speed)
    return max(times)


def fits(shape, resources, cuts, tokens):
    bounds = [0, *cuts, shape.num_layers]
    for rank, (start, end) in enumerate(pairwise(bounds)):
        parameters = sum(shape.layer_parameters[start:end])
        parameters += shape.embedding_parameters if rank == 0 else 0
        if rank == len(resources) - 1:
            tied_here = shape.tied and rank == 0
            parameters += shape.end_parameters
            parameters += 0 if tied_here else shape.head_parameters
        kv = sum(shape.kv_values_per_token[start:end]) * tokens
        memory = resources[rank].memory_bytes
        if memory is not None and 4 * (parameters + kv) + RESERVED > memory:
            return False
    return True


shapes = st.builds(
    shape_of,
    st.lists(st.integers(1, 50), min_size=1, max_size=9),
    embedding=st.integers(1, 100),
    head=st.integers(1, 200),
    tied=st.booleans(),
    kv=st.integers(1, 4),
)
ranks = st.lists(
    st.builds(
        RankResources,
        memory_bytes=st.none() | st.integers(RESERVED + 50, RESERVED + 3000),
        speed=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(300), deadline=None)
@given(shapes, ranks)
def test_no_other_cut_is_better(shape, resources):
    inner = range(1, shape.num_layers)
    possible = [
        step_time(shape, resources, cuts)
        for cuts in combinations(inner, len(resources) - 1)
        if fits(shape, resources, cuts, 10)
    ]
    if not possible:
        with pytest.raises(PlanError):
            plan(shape, resources)
        return
    planned = plan(shape, resources)
    assert [item.rank for item in planned] == list(range(len(resources)))
    assert planned[0].layers[0] == 0
    assert planned[-1].layers[1] == shape.num_layers
    cuts = [item.layers[0] for item in planned[1:]]
    assert [item.layers[1] for item in planned[:-1]] == cuts
    assert fits(shape, resources, cuts, 10)
    assert step_time(shape, resources, cuts) == pytest.approx(min(possible))
    assert sum(item.step_share for item in planned) == pytest.approx(1)


@settings(max_examples=examples(100), deadline=None)
@given(shapes, st.data())
def test_layers_given_are_kept(shape, data):
    count = data.draw(st.integers(1, shape.num_layers))
    cuts = sorted(
        data.draw(
            st.sets(st.integers(1, shape.num_layers - 1), min_size=count - 1, max_size=count - 1)
        )
        if count > 1
        else []
    )
    bounds = [0, *cuts, shape.num_layers]
    ranges = list(pairwise(bounds))
    kept = data.draw(st.sets(st.integers(0, count - 1)))
    resources = [
        RankResources(layers=ranges[rank] if rank in kept else None) for rank in range(count)
    ]
    planned = plan(shape, resources)
    assert all(planned[rank].layers == ranges[rank] for rank in kept)


def test_the_last_rank_takes_fewer_layers_for_its_head():
    planned = plan(shape_of([10] * 10, head=39), [RankResources(), RankResources()])
    assert [item.layers for item in planned] == [(0, 7), (7, 10)]
    assert [item.step_share for item in planned] == [0.5, 0.5]


def test_a_faster_rank_takes_more_layers():
    planned = plan(shape_of([10] * 9, head=1), [RankResources(speed=2), RankResources(speed=1)])
    assert [item.layers for item in planned] == [(0, 6), (6, 9)]


def test_bytes_are_counted_where_they_are_held():
    resources = [RankResources(memory_bytes=900 + RESERVED), RankResources()]
    first, last = plan(shape_of([10, 10], embedding=5, head=7, tied=True), resources)
    assert first.weight_bytes == 4 * (10 + 5)
    assert last.weight_bytes == 4 * (10 + 1 + 7)
    assert first.kv_bytes_per_token == 4 * 2
    assert (first.kv_budget_bytes, first.kv_budget_tokens) == (840, 105)
    assert (last.kv_budget_bytes, last.kv_budget_tokens) == (None, None)


def test_one_rank_holds_a_tied_embedding_once():
    tied, untied = (
        plan(shape_of([10], embedding=5, head=5, tied=tied), [RankResources()])[0]
        for tied in (True, False)
    )
    assert untied.weight_bytes - tied.weight_bytes == 4 * 5


def test_one_rank_on_a_cpu_packs_a_small_tied_head_as_a_copy():
    limit = TIED_COPY_LIMIT_BYTES // 4
    for head, copies in ((limit, 1), (limit + 1, 0)):
        shape = shape_of([10], embedding=head, head=head, tied=True)
        [rank] = plan(shape, [RankResources(packs=True)])
        assert rank.weight_bytes == 4 * (10 + 1 + (1 + copies) * head)


def test_memory_moves_the_cut():
    small = RankResources(memory_bytes=RESERVED + 4 * (10 + 3 * 10 + 3 * 2 * 10))
    planned = plan(shape_of([10] * 10), [small, RankResources()])
    assert [item.layers for item in planned] == [(0, 3), (3, 10)]


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ([RankResources()] * 5, "nnodes = 5: the model has 4 layers"),
        ([RankResources(layers=(0, 9)), RankResources()], 'rank 0: layers "0-8": the model has'),
        ([RankResources(), RankResources(layers=(1, 3))], "the last rank must end with layer 3"),
        ([RankResources(layers=(0, 4)), RankResources()], "leaves no layer for each of"),
        ([RankResources(layers=(0, 1)), RankResources(layers=(2, 4))], "leave a gap"),
        ([RankResources(layers=(0, 2)), RankResources(), RankResources(layers=(2, 4))], "gap"),
        ([RankResources(memory_bytes=RESERVED + 50), RankResources()],
         "rank 0: layers 0-0 do not fit its memory: they need 1,000,000,160 bytes and "
         "1,000,000,050 are there (80 for weights, 80 for KV of 10 tokens, 1,000,000,000 for the "
         "process and its largest step); give the rank more memory"),
        ([RankResources(memory_bytes=RESERVED + 250), RankResources(memory_bytes=RESERVED + 250)],
         "rank 0: layers 0-2 do not fit its memory: they need 1,000,000,400 bytes and "),
        ([RankResources(memory_bytes=300, layers=(0, 2)), RankResources()],
         "bytes and 300 are there"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(resources, told):
    with pytest.raises(PlanError) as raised:
        plan(shape_of([10] * 4), resources)
    assert told in str(raised.value)
