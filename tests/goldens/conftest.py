"""The HTTP surfaces that several goldens ask: a master, a proxy block, inference servers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from runner.master.engine.report import EngineStatistics, RankStatistics
from runner.master.engine.step_cost import StepCost
from runner.master.text.model_text import ModelText
from runner.models.folder import resolve_model
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import served_engine
from tests.web.small_upstream import DEPLOYMENT, SmallUpstream
from tests.web.tier_process import TierProcess

BLOCK = "block-1"
# Small, so that a body beyond it is quickly sent.
MAX_BODY_BYTES = 50_000
KEY = "sk-of-the-test"


class WatchedEngine(ScriptedEngine):
    """Tells of one rank, so that the metrics of ranks have samples."""

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(ranks=[RankStatistics(0, None, 0, StepCost(1).stages[0])])


@pytest.fixture(scope="session")
def engine() -> WatchedEngine:
    """Answers with one token; `failure` is set by whoever wants one, and taken back."""
    return WatchedEngine(lambda _request: [5])


@pytest.fixture(scope="session")
def text() -> ModelText:
    return ModelText.load(resolve_model("demo:smollm2-135m-instruct").path)


@pytest.fixture(scope="session")
def master(engine: WatchedEngine, text: ModelText) -> Iterator[str]:
    with served_engine(engine, text) as url:
        yield url


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiers")


@pytest.fixture(scope="session")
def proxy(folder: Path) -> Iterator[str]:
    sessions = SessionsSpec(str(folder / "sessions.sqlite3"))
    with SmallUpstream() as upstream:
        spec = ProxySpec(
            BLOCK,
            DEPLOYMENT,
            upstream.url,
            labels={"team": "a"},
            system_message="Be brief.",
            generation_config={"temperature": 0.5},
            sessions=sessions,
            max_body_bytes=MAX_BODY_BYTES,
        )
        with TierProcess("proxy_block", spec, folder) as process:
            yield process.url


@pytest.fixture(scope="session")
def server(folder: Path, proxy: str) -> Iterator[str]:
    """An inference server that everybody may ask."""
    spec = InferenceServerSpec(
        DEPLOYMENT,
        (BlockSpec(BLOCK, proxy), BlockSpec("block-2", proxy)),
        max_body_bytes=MAX_BODY_BYTES,
        request_log_path=str(folder / "requests.sqlite3"),
    )
    with TierProcess("inference_server", spec, folder) as process:
        yield process.url


@pytest.fixture(scope="session")
def server_with_keys(folder: Path, proxy: str) -> Iterator[str]:
    """An inference server that keeps no request log, with one key, of one token a minute."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = folder / "keys.json"
    keys.write_text(json.dumps([{"name": "me", "sha256": digest, "tokens_per_minute": 1}]))
    spec = InferenceServerSpec(DEPLOYMENT, (BlockSpec(BLOCK, proxy),))
    options = ("--api-keys-file", str(keys))
    with TierProcess("inference_server", spec, folder, None, *options) as process:
        yield process.url
