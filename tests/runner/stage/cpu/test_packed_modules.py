from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    Qwen3MoeConfig,
)
from transformers.pytorch_utils import Conv1D

from runner.stage.cpu import packed_modules
from runner.stage.cpu.packed_matrix import Layout, PackedMatrix, supported
from runner.stage.cpu.packed_modules import pack_weights

torch.set_num_threads(1)
SHAPES = [(1024, 1024), (2816, 1024), (1024, 2816), (8192, 576), (192, 576), (64, 48), (30, 20)]


def small_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def llama(**changes):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 320}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**sizes, **heads, "tie_word_embeddings": False, **changes})


def experts(kind):
    return kind(
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=8,
        num_experts=8,
        num_experts_per_tok=2,
        vocab_size=320,
    )


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def test_this_machine_packs():
    assert supported(), "torch lost the operators: every figure of the benchmarks is void"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["packed", "dense"])
def test_a_row_is_bit_equal_alone_and_among_others(shape, shared, threads):
    torch.manual_seed(1)
    matrix = PackedMatrix(torch.randn(shape), shared=shared)
    rows, bias = torch.randn(64, shape[1]), torch.randn(shape[0])
    together = matrix.apply(rows, bias)
    for count in range(1, 64):
        assert torch.equal(matrix.apply(rows[:count], bias), together[:count]), count
    for index in (0, 17, 63):
        assert torch.equal(matrix.apply(rows[index : index + 1], bias)[0], together[index])


def test_sixteen_bit_rows_are_bit_equal_and_right():
    torch.manual_seed(1)
    dense = torch.randn(9000, 512).bfloat16()
    matrix = PackedMatrix(dense)
    rows, bias = torch.randn(33, 512).bfloat16(), torch.randn(9000).bfloat16()
    together = matrix.apply(rows, bias)
    assert together.dtype == torch.bfloat16
    exact = rows.double() @ dense.double().T + bias.double()
    torch.testing.assert_close(together.double(), exact, rtol=1e-2, atol=1e-2)
    for count in (1, 2, 3, 5, 32):
        assert torch.equal(matrix.apply(rows[:count], bias), together[:count])


def test_layers_compute_what_they_computed():
    torch.manual_seed(2)
    model = nn.ModuleDict({"linear": nn.Linear(48, 96), "transposed": Conv1D(96, 48)})
    rows = torch.randn(2, 5, 48)
    with torch.inference_mode():
        nn.init.normal_(model["transposed"].bias)
        before = {name: module(rows) for name, module in model.items()}
        assert pack_weights(model) == 2 * 48 * 96 * 4
        for name, module in model.items():
            assert module.matrix.layout is Layout.PACKED
            torch.testing.assert_close(module(rows), before[name], rtol=1e-5, atol=1e-5)
    assert model["linear"].weight.shape == (96, 48)


@pytest.mark.parametrize(
    "config",
    [
        llama(),
        llama(tie_word_embeddings=True),
        GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=320),
        experts(Qwen3MoeConfig),
        experts(GptOssConfig),
    ],
    ids=["llama", "tied", "gpt2", "qwen3_moe", "gpt_oss"],
)
def test_models_give_the_same_logits(config):
    model = small_model(config)
    ids = torch.randint(0, 320, (3, 17), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        before = model(ids).logits
        assert pack_weights(model) > 0
        after = model(ids).logits
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_experts_leave_nothing_unpacked_behind():
    model = small_model(experts(Qwen3MoeConfig))
    layer = model.model.layers[0].mlp.experts
    pack_weights(model)
    assert layer.gate_up_proj is None
    assert layer.down_proj is None
    assert len(layer.packed_matrices["gate_up_proj"]) == 8


def test_a_tied_table_still_looks_up(monkeypatch):
    for limit, layout in ((2**40, Layout.PACKED), (0, Layout.DENSE)):
        monkeypatch.setattr(packed_modules, "TIED_COPY_LIMIT_BYTES", limit)
        model = small_model(llama(tie_word_embeddings=True))
        table = model.get_input_embeddings().weight.clone()
        pack_weights(model)
        assert model.lm_head.matrix.layout is layout
        assert torch.equal(model.get_input_embeddings()(torch.arange(320)), table)


def test_switched_off(monkeypatch):
    monkeypatch.setenv("SPLITSTACK_PACKED_WEIGHTS", "0")
    model = small_model(llama())
    assert pack_weights(model) == 0
    assert type(model.lm_head) is nn.Linear


def test_modules_on_another_device_stay_as_they_are():
    model = nn.Linear(8, 8, device="meta")
    assert pack_weights(model) == 0
    assert type(model) is nn.Linear


PEAK = """
import torch
from torch import nn
from runner.stage.cpu.packed_modules import pack_weights
pack_weights(nn.Linear(64, 64))
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
layers = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(64))
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts over
pack_weights(layers)
print(memory("VmRSS") - before, memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_originals_are_freed_one_by_one():
    output = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True
    ).stdout
    grown, peak = (int(word) for word in output.split())
    weights = 64 * 1024 * 1024 * 4
    assert grown < weights / 10
    assert peak < weights / 5
