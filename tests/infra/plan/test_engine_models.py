"""Models that another engine serves, and those that it cannot over these ranks."""

import pytest

from infra.plan.engine_models import refuse_unservable
from infra.plan.model_shape import UnknownShape, UnsplittableModel
from infra.plan.stack_plan import plan_stack
from infra.stack.faults import StackConfigError
from infra.stack.file import load_stack_file
from tests.infra.deployments import LOCAL

LLAMA = {"model_type": "llama", "num_attention_heads": 12, "num_key_value_heads": 4}


@pytest.mark.parametrize("devices", [1, 2, 4, 12])
def test_heads_that_divide(devices):
    refuse_unservable(LLAMA, devices)


@pytest.mark.parametrize(
    ("config", "devices", "why"),
    [
        (LLAMA, 5, "12 attention heads cannot be divided by common_params.tensor_parallel .5."),
        (LLAMA, 3, "4 key-value heads and common_params.tensor_parallel .3. do not divide"),
        (LLAMA, 6, "4 key-value heads and common_params.tensor_parallel .6. do not divide"),
        ({"model_type": "t5"}, 1, "encoder-decoder"),
        ({"model_type": "bert"}, 1, "generates no text"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "x"}}, 1, "code of its own"),
        ({"model_type": "llava", "vision_config": {}}, 1, "multimodal"),
    ],
)
def test_what_it_cannot_serve_is_refused_by_name(config, devices, why):
    with pytest.raises(UnsplittableModel, match=why):
        refuse_unservable(config, devices)


@pytest.mark.parametrize("model_type", ["falcon", "mpt", "gemma3n"])
def test_what_our_own_stages_cannot_split_it_may(model_type):
    refuse_unservable({"model_type": model_type}, 1)


def test_a_config_without_a_type():
    with pytest.raises(UnknownShape):
        refuse_unservable({}, 1)


def test_the_plan_of_a_stack_says_that_its_bytes_are_an_estimate():
    plan = plan_stack(load_stack_file(LOCAL, ("platform=vllm",)).deployment)
    assert [rank.layers for rank in plan.ranks] == [(0, 19), (19, 30)]
    assert plan.kv_estimated
    assert any(note.startswith("platform vllm: ") for note in plan.notes)


def test_heads_are_checked_before_anything_is_made():
    sets = ("platform=vllm", "gpu_pinning=resource", "common_params.tensor_parallel=2")
    ranks = ("per_rank_params=[{rank: 0, node_id: a}, {rank: 1, node_id: b}]",)
    deployment = load_stack_file(LOCAL, (*sets, *ranks)).deployment
    with pytest.raises(StackConfigError, match="9 attention heads"):
        plan_stack(deployment)
