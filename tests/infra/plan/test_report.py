"""The plan as a table and as JSON."""

import json

import pytest

from infra.plan.report import plan_to_json, render_plan
from tests.infra.deployments import LOCAL, PHI, planned
from tests.infra.plan.test_stack_plan import PHI_3_MINI


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_table():
    lines = render_plan(planned(LOCAL, "per_rank_params=[{rank: 0, memory: 4G}]")).splitlines()
    assert lines[2].split("  ")[0] == "rank"
    assert lines[3].split() == ["0", "-", "cpu", "0-18", "382.3", "MB", "2.6", "GB", "89,696",
                                "50.0%"]  # fmt: skip
    assert lines[4].split() == ["1", "-", "cpu", "19-29", "269.0", "MB", "16.9", "KB/token", "-",
                                "50.0%"]  # fmt: skip
    assert max(map(len, lines)) <= 100
    assert lines[6:9] == [
        "KV for at most 89,696 tokens (on rank 0, not known of rank 1)",
        "  requests at once, prompt and answer: at most 43 of 2,048 tokens, or 21 of 4,096",
        "  more than 32 never run at once (common_params.max_concurrent_requests)",
    ]
    assert lines[-1].startswith("note: memory was not checked for rank 1")


def test_requests_that_fit_where_every_rank_is_known():
    ranks = "per_rank_params=[{rank: 0, memory: 4G}, {rank: 1, memory: 2G}]"
    lines = render_plan(planned(LOCAL, ranks, "common_params.max_model_len=null")).splitlines()
    assert lines[6:8] == [
        "KV for 43,263 tokens (rank 1 has the least)",
        "  requests at once, prompt and answer: 21 of 2,048 tokens, or 5 of 8,192",
    ]
    one = ("nnodes=1", "per_rank_params=[{rank: 0, memory: 4G}]", "common_params.max_model_len=512")
    lines = render_plan(planned(LOCAL, *one)).splitlines()
    assert lines[5:7] == [
        "KV for 50,969 tokens",
        "  requests at once, prompt and answer: 99 of 512 tokens",
    ]


def test_an_estimate_is_called_one(tmp_path):
    """A GPU's largest step is measured where it is; a shape that is not known is guessed."""
    config = PHI_3_MINI | {"model_type": "something"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    memory = [f"per_rank_params[{rank}].device_memory=24Gi" for rank in range(4)]
    plan = planned(PHI, f"common_params.model_name={tmp_path}", *memory)
    text = render_plan(plan)
    assert "tokens (rank 0 has the least; an estimate, see the notes)\n" in text
    said = [note for note in plan.notes if "estimate" in note]
    assert said[0].startswith("model_type something is not in the plan's table: bytes are")
    assert said[1].startswith("a GPU's tokens of KV are an estimate: its stage computes")
    assert plan_to_json(plan)["kv_estimated"] is True


def test_the_table_of_a_model_that_is_not_known():
    layers = [f"per_rank_params[{rank}].layers={8 * rank}-{8 * rank + 7}" for rank in range(4)]
    text = render_plan(planned(PHI, *layers))
    assert "3     wc-gpu-node3  GPU 1    24-31" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_json_says_what_the_table_says():
    plan = planned(LOCAL)
    document = json.loads(json.dumps(plan_to_json(plan)))
    assert document["ranks"][1] == {
        "rank": 1,
        "node": None,
        "devices": "cpu",
        "layers": [19, 29],
        "weight_bytes": plan.ranks[1].weight_bytes,
        "kv_bytes_per_token": 11 * 384 * 4,
        "kv_bytes": None,
        "kv_tokens": None,
        "step_share": plan.ranks[1].step_share,
    }
    assert document["memory_checked"] is document["kv_estimated"] is False
    assert document["kv_tokens"] is None
    assert document["requests_that_fit"] == []
    assert document["notes"] == list(plan.notes)


def test_the_json_counts_requests():
    plan = planned(LOCAL, "per_rank_params=[{rank: 0, memory: 4G}, {rank: 1, memory: 4G}]")
    document = plan_to_json(plan)
    assert document["kv_tokens"] == min(rank.kv_budget_tokens for rank in plan.ranks)
    assert document["requests_that_fit"] == [
        {"tokens": 2048, "requests": 43},
        {"tokens": 4096, "requests": 21},
    ]
