"""Every metric by name, with its type, its help, its labels and its buckets.

Dashboards, alerts and other people's queries name them.
"""

from __future__ import annotations

from typing import Any

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runner.stage.process.health import DEVICE_GAUGES, StageMetrics
from tests.goldens.conftest import BLOCK
from tests.goldens.recorded_file import check_recorded


def families(text: str) -> dict[str, dict[str, Any]]:
    """What a scrape holds, without values; a family that nothing was counted in has no labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        samples = family.samples
        found[family.name] = {
            "type": family.type,
            "help": family.documentation,
            "labels": sorted({label for sample in samples for label in sample.labels}),
            "samples": sorted({sample.name for sample in samples}),
            "buckets": list(
                dict.fromkeys(sample.labels["le"] for sample in samples if "le" in sample.labels)
            ),
        }
    return found


def test_the_master(master: str) -> None:
    body = {"model": "test/model", "prompt": "x", "max_tokens": 1}
    httpx.post(f"{master}/v1/completions", json=body).raise_for_status()
    check_recorded("metrics-master", families(httpx.get(f"{master}/metrics").text))


def test_a_stage() -> None:
    registry: CollectorRegistry = StageMetrics(
        0,
        model_name=lambda: "test/model",
        ready=lambda: True,
        device=lambda: dict.fromkeys(DEVICE_GAUGES, 1.0),
    ).registry
    check_recorded("metrics-stage", families(generate_latest(registry).decode()))


def test_the_proxy_block(proxy: str) -> None:
    httpx.get(f"{proxy}/livez").raise_for_status()
    check_recorded("metrics-proxy-block", families(httpx.get(f"{proxy}/metrics").text))


def test_the_inference_server(server: str) -> None:
    body = {"model": BLOCK, "prompt": "x"}
    httpx.post(f"{server}/v1/completions", json=body).raise_for_status()
    check_recorded("metrics-inference-server", families(httpx.get(f"{server}/metrics").text))
