from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runner.sampling_parameters import SamplingParameters
from runner.stage.sampling.processors import _nucleus, places
from runner.stage.sampling.sampler import Sampler
from runner.steps import Admission, Segment, Step
from tests.lanes import examples

torch.set_num_threads(1)
VOCABULARY = 500
GREEDY = {"temperature": 0.0}


def scores(seed=0, rows=1, spread=3.0, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * spread


def admission(request, prompt_length=4, *, seed=7, choice=0, capacity=600, **sampling):
    parameters = SamplingParameters(**sampling)
    return Admission(request, capacity, prompt_length, choice, seed, parameters)


def step_of(*pieces):
    """pieces: (request, start, ids)."""
    segments = tuple(
        Segment(request, start, len(ids), start + len(ids), True) for request, start, ids in pieces
    )
    return Step(0, segments, [token_id for _, _, ids in pieces for token_id in ids])


def first_token(logits, prompt=(1, 2, 3, 4), **settings):
    sampler = Sampler(logits.shape[-1], "cpu")
    sampler.admit(admission(0, len(prompt), **settings))
    step = step_of((0, 0, list(prompt)))
    sampler.extend(step)
    (token,) = sampler.sample(step, logits)
    assert (token.request, token.position) == (0, len(prompt))
    return token


def run(logits_at, prompt, count, **settings):
    """Decode `count` tokens; logits_at(position) is the model."""
    sampler = Sampler(VOCABULARY, "cpu")
    sampler.admit(admission(0, len(prompt), **settings))
    ids, fresh = list(prompt), list(prompt)
    for _ in range(count):
        step = step_of((0, len(ids) - len(fresh), fresh))
        sampler.extend(step)
        (token,) = sampler.sample(step, logits_at(len(ids)))
        fresh = [token.token_id]
        ids.append(token.token_id)
    return ids[len(prompt) :]


def test_greedy_is_argmax_of_every_row():
    sampler = Sampler(VOCABULARY, "cpu")
    for request in range(32):
        sampler.admit(admission(request, 1, **GREEDY))
    step = step_of(*((request, 0, [request]) for request in range(32)))
    sampler.extend(step)
    logits = scores(rows=32)
    tokens = sampler.sample(step, logits)
    assert [token.token_id for token in tokens] == logits.argmax(-1).tolist()
    assert [token.request for token in tokens] == list(range(32))
    assert all(token.logprob is None and token.alternatives == () for token in tokens)


def test_only_sampling_segments_have_rows():
    sampler = Sampler(VOCABULARY, "cpu")
    for request in range(3):
        sampler.admit(admission(request, 3, **GREEDY))
    segments = (
        Segment(0, 0, 2, 3, False),
        Segment(1, 0, 3, 3, True),
        Segment(2, 0, 3, 3, True),
    )
    step = Step(0, segments, [5] * 8)
    sampler.extend(step)
    logits = scores(rows=2)
    tokens = sampler.sample(step, logits)
    assert [(token.request, token.position) for token in tokens] == [(1, 3), (2, 3)]


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_greedy_with_repetition_penalty_equals_generate(penalty):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, eos_token_id=None, **sizes)
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    prompt = [3, 99, 42, 3, 7]
    with torch.inference_mode():
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, repetition_penalty=penalty
        )[0, len(prompt) :].tolist()
        plain = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
        ids = list(prompt)

        def logits_at(position):
            del position
            return model(torch.tensor([ids])).logits[:, -1]

        sampler = Sampler(VOCABULARY, "cpu")
        sampler.admit(admission(0, len(prompt), repetition_penalty=penalty, **GREEDY))
        start, fresh = 0, prompt
        for _ in range(40):
            step = step_of((0, start, fresh))
            sampler.extend(step)
            (token,) = sampler.sample(step, logits_at(len(ids)))
            start, fresh = len(ids), [token.token_id]
            ids.append(token.token_id)
    assert ids[len(prompt) :] == expected
    assert plain[0, len(prompt) :].tolist() != expected


DISTRIBUTIONS = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 1.7},
    "hot_top_p": {"temperature": 2.0, "top_p": 0.9},
    "hot_top_k": {"temperature": 1.3, "top_k": 20},
    "cold_min_p": {"temperature": 0.7, "min_p": 0.02},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.5},
    "all": {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
}


def expected_distribution(logits, prompt, settings):
    """What transformers' processors, in transformers' order, make of the scores."""
    makers = [
        ("repetition_penalty", RepetitionPenaltyLogitsProcessor),
        ("temperature", TemperatureLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
        ("min_p", MinPLogitsWarper),
    ]
    chosen = LogitsProcessorList(
        maker(settings[name]) for name, maker in makers if name in settings
    )
    return torch.softmax(chosen(torch.tensor([prompt]), logits), -1)[0]


@pytest.mark.parametrize("settings", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
def test_the_distribution_is_that_of_transformers_processors(settings):
    vocabulary, draws, prompt = 40, 4000, (1, 2, 3, 4)
    logits = scores(3, spread=1.5, vocabulary=vocabulary)
    expected = expected_distribution(logits, prompt, settings)
    seen = torch.zeros(vocabulary)
    for seed in range(draws):
        seen[first_token(logits, prompt, seed=seed, **settings).token_id] += 1
    assert not seen[expected == 0].any()
    likely = expected * draws >= 5
    chi_square = ((seen - expected * draws) ** 2 / (expected * draws))[likely].sum().item()
    freedom = int(likely.sum()) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.3},
        {"temperature": 2.0, "top_p": 0.9},
        {"top_k": 50, "top_p": 0.95},
        {"min_p": 0.02},
        {"frequency_penalty": 0.5, "logit_bias": {3: 5.0}},
    ],
    ids=str,
)
def test_scores_with_other_last_bits_give_the_same_tokens(settings):
    changed = 0
    for seed in range(examples(400)):
        logits = scores(seed)
        near = logits * (1 + 1e-6 * scores(seed + 1, spread=1.0))
        one, other = (first_token(row, seed=seed, **settings) for row in (logits, near))
        changed += one.token_id != other.token_id
    assert changed <= examples(400) / 1000


def test_seed_choice_and_position_each_change_the_number():
    logits = torch.zeros(1, VOCABULARY)
    base = first_token(logits).token_id
    assert base == first_token(logits).token_id
    others = [
        first_token(logits, seed=8).token_id,
        first_token(logits, choice=1).token_id,
        first_token(logits, prompt=(1, 2, 3, 4, 5)).token_id,
        first_token(logits, seed=2**63 - 1).token_id,
    ]
    assert len({base, *others}) == 5


def mixed_settings(request):
    kinds = [
        GREEDY,
        {"temperature": 0.7},
        {"top_p": 0.9, "temperature": 1.2},
        {"top_k": 50, "top_p": 0.95},
        {"repetition_penalty": 1.2, **GREEDY},
        {"presence_penalty": 0.6, "frequency_penalty": 0.4},
        {"min_p": 0.05, "logit_bias": {3: 5.0}},
        {"logprobs": 3},
    ]
    return kinds[request % len(kinds)]


def test_alone_and_among_31_others_the_tokens_are_the_same():
    prompts = {request: [request, request + 1, 9] for request in range(32)}

    def decode(requests, shuffle):
        sampler = Sampler(VOCABULARY, "cpu")
        ids = {request: list(prompts[request]) for request in requests}
        for request in requests:
            settings = mixed_settings(request)
            sampler.admit(admission(request, 3, seed=request, **settings))
        answers = {request: [] for request in requests}
        for turn in range(12):
            order = list(requests)
            shuffle.shuffle(order)
            pieces = [
                (
                    request,
                    0 if turn == 0 else len(ids[request]) - 1,
                    ids[request][0 if turn == 0 else -1 :],
                )
                for request in order
            ]
            step = step_of(*pieces)
            sampler.extend(step)
            logits = torch.cat([scores(1000 * request + turn) for request in order])
            for token in sampler.sample(step, logits):
                ids[token.request].append(token.token_id)
                answers[token.request].append(token)
        return answers

    together = decode(range(32), random.Random(1))
    for request in range(32):
        assert decode([request], random.Random(2))[request] == together[request]


@pytest.mark.parametrize("request_kind", range(8))
def test_a_replay_goes_on_with_the_same_tokens(request_kind):
    settings = mixed_settings(request_kind)
    prompt = [5, 6, 7]

    def logits_at(position):
        return scores(position)

    whole = run(logits_at, prompt, 20, **settings)
    sampler = Sampler(VOCABULARY, "cpu")
    sampler.admit(admission(0, 3, **settings))
    sampler.extend(step_of((0, 0, [400, 401, 402])))  # the life before the fault
    sampler.reset()
    sampler.admit(admission(0, 3, **settings))
    known = prompt + whole[:8]
    first = Step(0, (Segment(0, 0, 6, 11, False),), known[:6])  # replayed in two chunks
    sampler.extend(first)
    assert sampler.sample(first, torch.empty(0, VOCABULARY)) == []
    start, fresh = 6, known[6:]
    for index in range(8, 20):
        step = step_of((0, start, fresh))
        sampler.extend(step)
        (token,) = sampler.sample(step, logits_at(3 + index))
        assert token.token_id == whole[index]
        start, fresh = 3 + index, [token.token_id]


def test_presence_and_frequency_follow_openais_formula():
    prompt, generated = [1, 1, 2], [2, 2, 3]
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 1], logits[0, 2], logits[0, 3], logits[0, 4] = 1.0, 4.0, 3.0, 2.0
    for presence, frequency in ((0.0, 0.0), (1.5, 0.0), (0.0, 1.5), (2.0, 2.0), (-1.0, 0.0)):
        sampler = Sampler(VOCABULARY, "cpu")
        settings = {"presence_penalty": presence, "frequency_penalty": frequency, **GREEDY}
        sampler.admit(admission(0, len(prompt), **settings))
        step = step_of((0, 0, prompt + generated))
        sampler.extend(step)
        (token,) = sampler.sample(step, logits)
        formula = {1: 1.0, 2: 4.0 - presence - 2 * frequency, 3: 3.0 - presence - frequency, 4: 2.0}
        assert token.token_id == max(formula, key=formula.__getitem__)


def test_logit_bias_acts_on_greedy_and_bans():
    logits = scores()
    best = int(logits.argmax())
    assert first_token(logits, logit_bias={17: 100.0}, **GREEDY).token_id == 17
    assert first_token(logits, logit_bias={best: -100.0}, **GREEDY).token_id != best
    assert first_token(logits, logit_bias={VOCABULARY + 5: 100.0}, **GREEDY).token_id == best


@pytest.mark.parametrize("wanted", [0, 1, 5, 20])
def test_logprobs_are_those_of_the_raw_distribution(wanted):
    logits = scores(5)
    raw = torch.log_softmax(logits[0], -1)
    token = first_token(logits, logprobs=wanted, temperature=1.8, top_k=3, logit_bias={9: 50.0})
    assert token.token_id == 9
    assert token.logprob == pytest.approx(float(raw[9]))
    assert [token_id for token_id, _ in token.alternatives] == raw.topk(wanted).indices.tolist()
    values = [value for _, value in token.alternatives]
    assert values == pytest.approx(raw.topk(wanted).values.tolist())


@pytest.mark.parametrize("settings", [GREEDY, {}, {"top_p": 0.9, "top_k": 40}, {"logprobs": 2}])
def test_scores_that_are_no_numbers_cost_their_row_only(settings):
    logits = scores(6, rows=4)
    logits[0] = float("nan")
    logits[1, 3] = float("inf")
    logits[2] = float("-inf")
    sampler = Sampler(VOCABULARY, "cpu")
    for request in range(4):
        sampler.admit(admission(request, 1, **settings))
    step = step_of(*((request, 0, [1]) for request in range(4)))
    sampler.extend(step)
    tokens = sampler.sample(step, logits)
    assert all(0 <= token.token_id < VOCABULARY for token in tokens)
    assert tokens[1].token_id == 3
    healthy = first_token(logits[3:], prompt=(1,), **settings)
    assert tokens[3].token_id == healthy.token_id


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-300},
        {"temperature": 1e-3},
        {"repetition_penalty": 1e-300},
        {"top_p": 1e-300},
        {"min_p": 1.0},
        {"top_k": 1},
    ],
    ids=str,
)
def test_extremes_give_the_best_token(settings):
    logits = scores(8).abs()
    best = 2 if "repetition_penalty" in settings else int(logits.argmax())
    logits[0, 2] += 0.5 if "repetition_penalty" in settings else 0
    assert first_token(logits, prompt=(2,), **settings).token_id == best


def test_masked_scores_are_never_drawn():
    logits = torch.full((1, VOCABULARY), float("-inf"))
    logits[0, [10, 20]] = 0.0
    drawn = {first_token(logits, seed=seed).token_id for seed in range(64)}
    assert drawn == {10, 20}


def test_released_and_unknown_requests():
    sampler = Sampler(VOCABULARY, "cpu")
    sampler.admit(admission(0, **GREEDY))
    sampler.release(0)
    sampler.release(12345)
    with pytest.raises(KeyError):
        sampler.extend(step_of((0, 0, [1])))


@pytest.mark.parametrize("length", [1, 4, 6])
def test_reused_ids_count_as_known_ones(length):
    """Also of a donor that counts none itself, and of one that was a receiver."""
    ids = [3, 4, 4, 5, 6, 3]
    settings = {"repetition_penalty": 1.8, "frequency_penalty": 0.9, "temperature": 0.7}
    logits = scores(5)
    whole = Sampler(VOCABULARY, "cpu")
    whole.admit(admission(9, 3, **settings))
    further = [8, 9]
    step = step_of((9, 0, ids[:length] + further))
    whole.extend(step)
    (expected,) = whole.sample(step, logits)
    sampler = Sampler(VOCABULARY, "cpu")
    sampler.admit(admission(1, 3, **GREEDY))
    sampler.extend(step_of((1, 0, ids[:2])))
    sampler.extend(step_of((1, 2, [7, 7])))
    sampler.extend(step_of((1, 2, ids[2:])))  # a step that is computed again
    sampler.admit(replace(admission(2, 3, **GREEDY), donor=1, reused=length))
    sampler.admit(replace(admission(9, 3, **settings), donor=2, reused=length))
    sampler.release(1)
    sampler.release(2)
    step = step_of((9, length, further))
    sampler.extend(step)
    assert sampler.sample(step, logits) == [expected]


@pytest.mark.parametrize("top_p", [1e-6, 0.01, 0.5, 0.8, 0.95, 0.999, 1 - 1e-7])
@pytest.mark.parametrize("vocabulary", [1, 2, 500, 49152])
def test_the_nucleus_is_that_of_a_full_sort(top_p, vocabulary):
    """Whatever is left out before it is sorted; peaked rows, flat ones and ties."""
    for spread in (0.0, 0.5, 3.0, 12.0):
        for row in scores(int(spread * 7), 4, spread, vocabulary):
            row = row.round() if spread == 3.0 else row
            probabilities = torch.softmax(row, dim=-1)
            ascending = probabilities.sort().values
            below = ascending.cumsum(dim=-1, dtype=torch.float64)
            first = int(torch.searchsorted(below, 1 - top_p, right=True))
            expected = probabilities >= ascending[min(first, vocabulary - 1)]
            assert torch.equal(_nucleus(probabilities, top_p), places(expected))
