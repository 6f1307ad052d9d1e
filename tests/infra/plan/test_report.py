"""The plan as a table and as JSON."""

import json

import pytest

from infra.plan.report import plan_to_json, render_plan
from tests.infra.deployments import LOCAL, PHI, planned


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
    assert lines[-1].startswith("note: memory was not checked for rank 1")


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
    assert document["memory_checked"] is False
    assert document["notes"] == list(plan.notes)
