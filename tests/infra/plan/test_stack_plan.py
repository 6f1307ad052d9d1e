"""Stack file + config.json -> plan, and how it is shown."""

import json
import os

import pytest

from infra.stack.faults import StackConfigError
from tests.infra.deployments import LOCAL, PHI, planned

PHI_3_MINI = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PHI_3_MINI))
    return tmp_path


def refusal(path, *sets):
    with pytest.raises(StackConfigError) as raised:
        planned(path, *sets)
    (fault,) = raised.value.faults
    return str(fault)


def test_the_local_stack():
    plan = planned(LOCAL)
    assert [rank.layers for rank in plan.ranks] == [(0, 19), (19, 30)]
    assert (plan.dtype, plan.max_model_len, plan.memory_checked) == ("float32", 4096, False)
    layer, embedding = 3_540_096, 28_311_552
    assert plan.ranks[0].weight_bytes == 4 * (19 * layer + embedding)
    assert plan.ranks[1].weight_bytes == 4 * (11 * layer + embedding + 576)
    assert plan.notes == ("memory was not checked for rank 0, 1: per_rank_params has no memory",)


def test_the_budget_is_memory_less_weights_less_a_gigabyte():
    plan = planned(LOCAL, "per_rank_params=[{rank: 0, memory: 4G}, {rank: 1, memory: 4G}]")
    assert plan.memory_checked
    assert plan.notes == ()
    for rank in plan.ranks:
        assert rank.kv_budget_bytes == 4 * 10**9 - rank.weight_bytes - 10**9
        assert rank.kv_budget_tokens == rank.kv_budget_bytes // rank.kv_bytes_per_token
        assert rank.memory_share.kv_tokens(4 * 10**9) == rank.kv_budget_tokens
    assert not plan.kv_estimated


def test_cores_count_where_every_rank_states_them():
    faster = planned(LOCAL, "per_rank_params=[{rank: 0, cpu: 1}, {rank: 1, cpu: 3}]")
    assert faster.ranks[0].layers == (0, 9)
    unsaid = planned(LOCAL, "per_rank_params=[{rank: 1, cpu: 3}]")
    assert unsaid.ranks[0].layers == (0, 19)


def test_a_rank_s_own_speed_comes_before_its_cores():
    faster = planned(LOCAL, "per_rank_params=[{rank: 0, cpu: 1}, {rank: 1, cpu: 1, speed: 3}]")
    assert faster.ranks[0].layers == (0, 9)
    unsaid = planned(LOCAL, "per_rank_params=[{rank: 1, speed: 3}]")
    assert unsaid.ranks[0].layers == (0, 9)


def test_gpus_take_the_dtype_of_the_checkpoint(folder):
    memory = [f"per_rank_params[{rank}].device_memory=80Gi" for rank in range(4)]
    plan = planned(PHI, f"common_params.model_name={folder}", *memory)
    assert (plan.dtype, plan.model_type, plan.max_model_len) == ("bfloat16", "phi3", 131072)
    assert plan.memory_checked
    assert sum(rank.weight_bytes for rank in plan.ranks) == 2 * 3_821_079_552
    assert plan.ranks[0].kv_bytes_per_token == 8 * 2 * 3072 * 2


def test_a_quantized_model_is_counted_as_it_is_held(folder):
    whole = planned(PHI, f"common_params.model_name={folder}")
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(PHI_3_MINI | {"quantization_config": fp8}))
    plan = planned(PHI, f"common_params.model_name={folder}")
    assert [rank.weight_bytes for rank in plan.ranks] == [rank.weight_bytes for rank in whole.ranks]
    held = sum(rank.weight_bytes for rank in plan.ranks)
    assert (
        "the model is stored as fp8 in blocks of 128x128; its weights are held in bfloat16: "
        f"{held:,} bytes (7.6 GB)"
    ) in plan.notes
    assert len(plan.notes) == len(whole.notes) + 1


def test_two_kinds_of_gpu_share_the_layers_by_their_speeds(folder):
    speeds = [f"per_rank_params[{rank}].speed=0.5" for rank in (2, 3)]
    plan = planned(PHI, f"common_params.model_name={folder}", *speeds)
    sizes = [end - start for start, end in (rank.layers for rank in plan.ranks)]
    assert sum(sizes) == 32
    assert sizes[:2] == [11, 11]


def test_a_length_beyond_the_model_is_refused_and_yarn_scales_it(folder):
    sets = [f"common_params.model_name={folder}", "common_params.max_model_len=400000"]
    assert "must be at most the model's own maximum, 131072" in refusal(PHI, *sets)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 131072}
    (folder / "config.json").write_text(json.dumps(PHI_3_MINI | {"rope_scaling": yarn}))
    assert planned(PHI, *sets).max_model_len == 400000
    assert planned(PHI, sets[0]).max_model_len == 4 * 131072


def test_a_rank_fetches_its_files_and_their_neighbours_at_most(folder):
    """A rank's own tensors may begin and end within a file."""
    sets = [f"common_params.model_name={folder}", "common_params.max_model_len=4096"]
    whole = 2 * 3_821_079_552
    assert {rank.file_bytes for rank in planned(PHI, *sets).ranks} == {whole}
    names = [f"model-{place:02}.safetensors" for place in range(40)]
    index = {f"a{place}.weight": name for place, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "tokenizer.json").write_text("{}")
    for name in names:
        (folder / name).touch()
        os.truncate(folder / name, whole // 40)
    plan = planned(PHI, *sets)
    for rank in plan.ranks:
        assert rank.file_bytes == rank.weight_bytes + 3 * (whole // 40)


def test_what_does_not_fit_names_the_rank(folder):
    memory = [f"per_rank_params[{rank}].device_memory=8G" for rank in range(4)]
    message = refusal(PHI, f"common_params.model_name={folder}", *memory)
    assert message.startswith("per_rank_params: rank 3: layers 24-31 do not fit its memory: ")
    assert "and 8,000,000,000 are there" in message
    assert "KV of 131,072 tokens" in message
    assert planned(PHI, f"common_params.model_name={folder}", "common_params.max_model_len=4096",
                   *memory).memory_checked  # fmt: skip


def test_an_unreadable_config_needs_layers():
    message = refusal(PHI)
    assert message.startswith(
        "common_params.model_name = 'microsoft/Phi-3-mini-128k-instruct': "
        "its config.json cannot be read: "
    )
    assert "(missing: 0, 1, 2, 3)" in message
    layers = [f"per_rank_params[{rank}].layers={8 * rank}-{8 * rank + 7}" for rank in range(4)]
    plan = planned(PHI, *layers)
    assert [rank.layers for rank in plan.ranks] == [(0, 8), (8, 16), (16, 24), (24, 32)]
    assert not plan.memory_checked
    assert plan.notes[0].startswith("memory was not checked")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('{"model_type": "falcon"}', "model_type falcon computes attention of its own"),
        ("{", "has a config.json that is not JSON"),
        ("[]", "has a config.json that is not an object"),
        (None, "is a folder whose config.json cannot be read"),
        ('{"model_type": "llama"}', "config.json has no hidden_size"),
    ],
)
def test_models_that_cannot_be_served(tmp_path, config, told):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    message = refusal(LOCAL, f"common_params.model_name={tmp_path}")
    assert message.startswith(f"common_params.model_name = '{tmp_path}'"[:60])
    assert told in message


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("common_params.model_name=demo:other", "is no demo model; there is demo:smollm2"),
        ("common_params.model_name=/not/there", "there is no folder /not/there here"),
        ("common_params.max_model_len=9000", "must be at most the model's own maximum, 8192"),
        ("nnodes=31", "nnodes = 31: the model has 30 layers"),
    ],
)
def test_wrong_values(item, told):
    assert told in refusal(LOCAL, item)
