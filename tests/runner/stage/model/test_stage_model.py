from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runner.errors import ModelUnavailable, RunnerError, UnsupportedModel
from runner.stage.cpu.packed_matrix import SWITCH
from runner.stage.model.checkpoint import Checkpoint
from runner.stage.model.stage_model import StageModel
from runner.steps import Admission, Segment, Step
from tests.architectures_page import architectures_page
from tests.lanes import each_once
from tests.runner.stage.model.stage_pipeline import GREEDY, StagePipeline, Text
from tests.small_models import (
    ARCHITECTURES,
    FURTHER_ARCHITECTURES,
    LAYERS,
    OF_EACH_KIND,
    REFUSED,
    ROPE_BOUNDARY,
    VOCABULARY,
    make_small_model,
)

torch.set_num_threads(1)
# Longer and shorter than the sliding windows; the last joins when others have left.
PROMPT_LENGTHS = (13, 37, 5, 9)
WANTED = (10, 8, 6, 8)
JOINS = (0, 1, 0, 9)
CHUNKS = (100, 11, 3, 4)
LEAST_DISTINCT = 6


def prompts(lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def generate(model, prompt, wanted):
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=wanted, do_sample=False
    )
    return output[0, len(prompt) :].tolist()


def check_split(architecture, folder, ranks):
    model = make_small_model(architecture, folder)
    asked = prompts(PROMPT_LENGTHS)
    pairs = list(zip(asked, WANTED, strict=True))
    expected = [generate(model, *pair) for pair in pairs]
    assert len({token for output in expected for token in output}) >= LEAST_DISTINCT
    pipeline = StagePipeline(folder, LAYERS, ranks)
    assert pipeline.run([Text(*pairs[1])]) == expected[1:2], "one request"
    assert pipeline.run([Text(*pair) for pair in pairs]) == expected, "packed"
    mixed = [Text(*pair, *more) for pair, *more in zip(pairs, JOINS, CHUNKS, strict=True)]
    assert pipeline.run(mixed) == expected, "chunks, joining and leaving"
    check_reuse(model, pipeline, asked[1], expected[1])


def check_reuse(model, pipeline, prompt, output):
    """A session's next turn, another one's of equal length, and one that begins like a running
    one: the first takes its donor's slot over as it is or into a larger one."""
    further = prompts((9, 4), seed=3)
    turn = prompt + output[:-1] + further[0]
    branch = prompt[:-6] + further[1]
    joins = len(output) + 3
    for room in (0, 5):
        texts = [
            Text(prompt, len(output)),
            Text(turn, 3, joins=joins + 1, chunk=4, donor=0, ends_donor=True),
            Text(branch, 4, joins=joins, donor=0),
            Text(prompt + output[:2], 3 + room, joins=4, donor=0),
        ]
        if not room:
            texts[0].wanted = len(turn) + 3 - len(prompt)
            texts[1].joins = texts[2].joins = texts[0].wanted + 4
            texts[1].joins += 1
        expected = [generate(model, text.prompt, text.wanted) for text in texts]
        assert pipeline.run(texts) == expected, f"reused, room {room}"
    assert pipeline.reused > len(prompt)


@pytest.mark.parametrize(
    ("architecture", "ranks"), each_once(ARCHITECTURES, (1, 2, 4), OF_EACH_KIND)
)
def test_split_equals_unsplit(architecture, ranks, tmp_path):
    check_split(architecture, tmp_path, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FURTHER_ARCHITECTURES)
def test_split_equals_unsplit_further(architecture, tmp_path):
    check_split(architecture, tmp_path, 2)


def test_longrope_short_beside_long_and_across_the_boundary(tmp_path):
    model = make_small_model("phi3", tmp_path)
    short, crossing, long = prompts((20, ROPE_BOUNDARY - 4, ROPE_BOUNDARY + 20), seed=2)
    asked = [(short, 12), (crossing, 12), (long, 12)]
    expected = [generate(model, *pair) for pair in asked]
    assert len({token for output in expected for token in output}) >= LEAST_DISTINCT
    for ranks in (1, 2, 4):
        pipeline = StagePipeline(tmp_path, LAYERS, ranks)
        assert {stage.rope_boundary for stage in pipeline.stages} == {ROPE_BOUNDARY}
        for chunk in (1000, 17):
            texts = [Text(*pair, chunk=chunk) for pair in asked]
            assert pipeline.run(texts) == expected, f"{ranks} ranks, chunks of {chunk}"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_oss", "gemma2"])
def test_unpacked_weights_give_the_same_tokens(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    check_split(architecture, tmp_path, 2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi3"])
def test_decode_is_bit_equal_alone_and_among_others(architecture, tmp_path):
    make_small_model(architecture, tmp_path)
    stage = StageModel.load(Checkpoint(tmp_path), (0, LAYERS))
    asked = prompts((9, 14, 6, 11, 7), seed=3)
    for request, prompt in enumerate(asked):
        stage.admit(Admission(request, 32, len(prompt), 0, 0, GREEDY))
        step = Step(request, (Segment(request, 0, len(prompt), len(prompt), False),), prompt)
        assert stage.forward(step, None).shape == (0, VOCABULARY)

    def decode(requests):
        segments = tuple(
            Segment(request, len(asked[request]), 1, len(asked[request]) + 1, True)
            for request in requests
        )
        return stage.forward(Step(9, segments, [7] * len(requests)), None)

    together = decode(range(5))
    for request in range(5):
        assert torch.equal(decode([request])[0], together[request])
    assert torch.equal(decode([1, 2]), together[1:3])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_other_ranks_files_may_be_absent(rank, tied, tmp_path):
    model = make_small_model("llama", tmp_path, tie_word_embeddings=tied)
    layers = [(0, 1), (1, 3), (3, 4)][rank]
    own = set(Checkpoint(tmp_path).own_files(layers))
    everything = {path.name for path in tmp_path.glob("*.safetensors")}
    assert own < everything
    for name in everything - own:
        (tmp_path / name).unlink()
    stage = StageModel.load(Checkpoint(tmp_path), layers)
    names = [f"model.layers.{index}." for index in range(*layers)]
    names += ["model.embed_tokens."] if rank == 0 or (tied and rank == 2) else []
    names += ["model.norm.", "lm_head."] if rank == 2 else []
    tensors = {
        parameter.data_ptr(): parameter.nbytes
        for name, parameter in model.named_parameters()
        if name.startswith(tuple(names))
    }
    assert stage.weight_bytes == sum(tensors.values())


def test_missing_own_file_and_own_tensor_are_named(tmp_path):
    make_small_model("llama", tmp_path / "model")
    name = Checkpoint(tmp_path / "model").own_files((0, 1))[0]
    (tmp_path / "model" / name).unlink()
    with pytest.raises(ModelUnavailable, match=name):
        StageModel.load(Checkpoint(tmp_path / "model"), (0, 1))
    shutil.copytree(tmp_path / "model", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ModelUnavailable, match=r"model\.layers\.0"):
        StageModel.load(Checkpoint(tmp_path / "broken"), (0, 1))
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        StageModel.load(Checkpoint(tmp_path), (0, 1))


def test_single_file_checkpoint(tmp_path):
    model = make_small_model("qwen3", tmp_path / "sharded")
    model.save_pretrained(tmp_path / "single")
    assert Checkpoint(tmp_path / "single").own_files((0, 1)) == ["model.safetensors"]
    prompt = prompts((8,))[0]
    pipeline = StagePipeline(tmp_path / "single", LAYERS, 2)
    assert pipeline.run([Text(prompt, 6)]) == [generate(model, prompt, 6)]


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_be_split_is_refused_by_name(architecture, tmp_path):
    changes, reason = REFUSED[architecture]
    AutoConfig.for_model(architecture, **changes).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        StageModel.load(Checkpoint(tmp_path), (0, 1))
    assert architecture in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic rope",
        ),
        (
            {"quantization_config": {"quant_method": "quanto"}},
            "quant_method = 'quanto' is not read",
        ),
        ({"layer_types": ["full_attention", "chunked_attention"] * 16}, "chunked_attention"),
    ],
)
def test_what_a_configuration_asks_for_is_refused_by_name(changes, reason, tmp_path):
    AutoConfig.for_model("llama", **changes).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=reason):
        StageModel.load(Checkpoint(tmp_path), (0, 1))


def test_the_page_of_architectures_is_the_generated_one():
    page = Path(__file__).parents[4] / "docs" / "model-architectures.md"
    assert page.read_text("utf-8") == architectures_page(), (
        "run: python -m tests.architectures_page > docs/model-architectures.md"
    )


@pytest.mark.parametrize("layers", [(0, 5), (2, 2), (-1, 2), (3, 1)])
def test_layers_outside_the_model_are_refused(layers, tmp_path):
    make_small_model("llama", tmp_path)
    with pytest.raises(UnsupportedModel, match="within the 4 layers"):
        StageModel.load(Checkpoint(tmp_path), layers)


def test_unknown_dtype_is_refused(tmp_path):
    make_small_model("llama", tmp_path)
    with pytest.raises(UnsupportedModel, match="dtype = 'int8'"):
        StageModel.load(Checkpoint(tmp_path), (0, 1), dtype="int8")


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_bfloat16_holds_half_and_stays_near_float32(architecture, tmp_path):
    make_small_model(architecture, tmp_path)
    prompt = prompts((12,))[0]
    step = Step(0, (Segment(0, 0, 12, 12, True),), prompt)
    logits, sizes, weights = [], [], []
    for dtype in ("float32", "bfloat16"):
        stage = StageModel.load(Checkpoint(tmp_path), (0, LAYERS), dtype=dtype)
        stage.admit(Admission(0, 12, 12, 0, 0, GREEDY))
        logits.append(stage.forward(step, None))
        sizes.append(stage.kv_bytes_per_token)
        weights.append(stage.weight_bytes)
    assert stage.torch_dtype == torch.bfloat16
    assert logits[1].dtype == torch.float32
    assert sizes[0] == 2 * sizes[1]
    assert weights[1] < 0.55 * weights[0]
    difference = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert difference < 0.15


def test_auto_dtype_is_float32_on_the_cpu(tmp_path):
    model = make_small_model("llama", tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="40KB")
    stage = StageModel.load(Checkpoint(tmp_path), (1, 2))
    assert stage.torch_dtype == torch.float32
    assert stage.weight_bytes >= 4 * sum(p.numel() for p in model.model.layers[1].parameters())


def test_kv_memory_is_what_was_said(tmp_path):
    make_small_model("llama", tmp_path)
    stage = StageModel.load(Checkpoint(tmp_path), (0, 3))
    assert stage.kv_bytes_per_token == 3 * 2 * 2 * 16 * 4

    def held():
        gc.collect()
        tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.dim() == 3]
        return sum(t.nbytes for t in tensors if t.shape[0] == 2 and t.shape[2] == 16)

    before = held()
    stage.reserve_kv(3 * 512)
    reserved = (3 * 512 + 1) * stage.kv_bytes_per_token  # one position is nobody's
    for request in (0, 1, 2, 1):
        stage.admit(Admission(request, 512, 4, 0, 0, GREEDY))
        assert held() == before + reserved
    stage.release(1)
    stage.release(99)
    stage.reset()
    assert held() == before + reserved
    stage.reserve_kv(0)
    assert held() == before + stage.kv_bytes_per_token


def test_a_step_beyond_its_request_is_refused_and_the_next_one_runs(tmp_path):
    make_small_model("llama", tmp_path)
    stage = StageModel.load(Checkpoint(tmp_path), (0, LAYERS))
    stage.admit(Admission(0, 4, 4, 0, 0, GREEDY))
    with pytest.raises(RunnerError, match="beyond 4"):
        stage.forward(Step(0, (Segment(0, 0, 5, 5, True),), [1] * 5), None)
    with pytest.raises(RunnerError, match="request 7"):
        stage.forward(Step(1, (Segment(7, 0, 1, 1, True),), [1]), None)
    logits = stage.forward(Step(2, (Segment(0, 0, 4, 4, True),), [1] * 4), None)
    assert logits.shape == (1, VOCABULARY)
    assert logits.isfinite().all()


def test_an_admission_starts_a_request_over(tmp_path):
    make_small_model("llama", tmp_path)
    stage = StageModel.load(Checkpoint(tmp_path), (0, LAYERS))
    step = Step(0, (Segment(0, 0, 4, 4, True),), [5, 6, 7, 8])
    stage.admit(Admission(0, 4, 4, 0, 0, GREEDY))
    before = stage.forward(step, None)
    stage.admit(Admission(0, 8, 4, 0, 0, GREEDY))
    assert torch.equal(stage.forward(step, None), before)


def test_weights_are_those_of_transformers(tmp_path):
    """Fused experts go through transformers' own conversion: logits agree, not only tokens."""
    model = make_small_model("qwen3_moe", tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    prompt = prompts((12,))[0]
    stage = StageModel.load(Checkpoint(tmp_path), (0, LAYERS))
    stage.admit(Admission(0, 12, 12, 0, 0, GREEDY))
    logits = stage.forward(Step(0, (Segment(0, 0, 12, 12, True),), prompt), None)
    with torch.inference_mode():
        expected = saved(torch.tensor([prompt])).logits[0, -1:]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert model.config.num_experts == 4
