"""The real stack, scraped by a real Prometheus: what the dashboard shows and the alerts watch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.cluster.observability.alert_rules import ALERTS_FILE
from infra.cluster.observability.component import DASHBOARD_FILE, read
from tests.e2e.local_stack import LocalStack
from tests.programs import needs, program
from tests.waiting import free_ports, wait_for

pytestmark = [pytest.mark.slow, needs("prometheus", "promtool")]
BLOCK = "pytorch-block-3"
SCRAPE_S = 1
# What Grafana fills in: four scrapes, and every model.
VARIABLES = {"$__rate_interval": f"{4 * SCRAPE_S}s", "$model": ".*"}


class Prometheus:
    """Debian's, with its data in `folder`, scraping every process of the stack."""

    def __init__(self, stack: LocalStack, folder: Path) -> None:
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        targets = [row["url"].removeprefix("http://") for row in stack.processes().values()]
        scrape = {"job_name": "splitstack", "static_configs": [{"targets": targets}]}
        rules = str(files("infra.cluster.observability").joinpath(ALERTS_FILE))
        configuration = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [scrape],
        }
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration))
        self._log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            [
                str(program("prometheus")),
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def __enter__(self) -> Prometheus:
        wait_for(self._ready, what="Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._log.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression})
        assert answer.is_success, f"{expression}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}/api/v1/{path}").json()["data"]

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=1).is_success
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def prometheus(
    local_stack: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    with Prometheus(local_stack, tmp_path_factory.mktemp("prometheus")) as running:
        yield running


def chat(stack: LocalStack, text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": BLOCK, "messages": [{"role": "user", "content": text}], **fields}
    answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.is_success, answer.text
    document: dict[str, Any] = answer.json()
    return document


def expressions() -> dict[str, str]:
    """Every query of the dashboard, by panel and number."""
    found = {}
    for panel in json.loads(read(DASHBOARD_FILE))["panels"]:
        for number, target in enumerate(panel.get("targets", [])):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found[f"{panel['title']} {panel['id']}.{number}"] = expression
    return found


def test_every_process_is_scraped(prometheus: Prometheus) -> None:
    def up() -> bool:
        states = [target["health"] for target in prometheus.get("targets")["activeTargets"]]
        return len(states) == 5 and set(states) == {"up"}

    wait_for(up, what="every target is up")


def test_every_query_of_the_dashboard_returns_data(
    prometheus: Prometheus, local_stack: LocalStack
) -> None:
    empty = dict(expressions())
    assert len(empty) > 30

    def all_answered() -> bool:
        chat(local_stack, "What is the capital of France?", max_completion_tokens=4)
        for name, expression in list(empty.items()):
            if any(sample["value"][1] != "NaN" for sample in prometheus.query(expression)):
                del empty[name]
        return not empty

    try:
        wait_for(all_answered, 90)
    except AssertionError:
        raise AssertionError(f"these return nothing: {json.dumps(empty, indent=2)}") from None


def test_counts_are_right(local_stack: LocalStack) -> None:
    master = local_stack.processes()["master"]["url"]
    before, usage = samples(master), {}
    for _ in range(3):
        usage = chat(local_stack, "Name a colour.", max_completion_tokens=5, temperature=0)["usage"]
    after = samples(master)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    for name in ("llm_prompts_total", "llm_inference_duration_seconds_count"):
        assert grown[name] == 3
    for name in ("llm_tokens_generated_total", "vllm:generation_tokens_total"):
        assert grown[name] == 3 * usage["completion_tokens"]
    for name in ("llm_prompt_tokens_total", "vllm:prompt_tokens_total"):
        assert grown[name] == 3 * usage["prompt_tokens"]
    assert grown["llm_inference_errors_total"] == 0
    assert after["vllm:num_requests_running"] == after["vllm:kv_cache_usage_perc"] == 0


def samples(url: str) -> dict[str, float]:
    """Of /metrics, those with no label but the model's."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name.split("{")[0]: float(value) for name, value in pairs if "," not in name}


def test_what_each_rank_computes_is_counted(prometheus: Prometheus) -> None:
    for name in ("compute_seconds_total", "steps_total", "weight_bytes", "kv_bytes"):
        found = prometheus.query(f"splitstack_stage_{name} > 0")
        assert {sample["metric"]["rank"] for sample in found} == {"0", "1"}, name


def test_promtool_accepts_the_metrics_of_every_tier(local_stack: LocalStack) -> None:
    for name, row in local_stack.processes().items():
        text = httpx.get(f"{row['url']}/metrics").text
        command = [str(program("promtool")), "check", "metrics"]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=30, check=False
        )
        # vLLM's names have a colon, which promtool keeps for recording rules.
        faults = [line for line in done.stderr.splitlines() if not line.startswith("vllm:")]
        assert faults == [], name
        assert "# TYPE" in text


def test_the_alert_rules_are_loaded_and_quiet(prometheus: Prometheus) -> None:
    [group] = prometheus.get("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []
