"""A proxy block process in front of a small upstream, which go on from test to test of a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.specs import ProxySpec, SessionsSpec
from tests.web.small_upstream import DEPLOYMENT, SmallUpstream
from tests.web.tier_process import TierProcess


class Kept:
    """`renew` before each test: they know of nothing that was before."""

    def __init__(self, folder: Path, ending: ExitStack, options: dict[str, Any]) -> None:
        self._folder, self._ending, self._options = folder, ending, options
        self.upstream = ending.enter_context(SmallUpstream())
        self.spec = ProxySpec(
            block_id="block-1",
            deployment_name=DEPLOYMENT,
            upstream_url=self.upstream.url,
            system_message="the block's",
            generation_config={"max_new_tokens": 20, "temperature": 0.5},
            request_deadline_s=60,
        )
        self._process: TierProcess | None = None
        self._files = 0

    def renew(self) -> None:
        self.upstream.reset()
        if self._alive is not None:
            httpx.post(f"{self._alive.url}/management", json={"action": "reset"})
            return
        self._files += 1
        sessions = SessionsSpec(path=str(self._folder / f"sessions-{self._files}.sqlite3"))
        self.spec = dataclasses.replace(self.spec, sessions=sessions)

    def proxy(self) -> TierProcess:
        """The process; another one where a test has ended it."""
        if self._alive is None:
            process = TierProcess("proxy_block", self.spec, self._folder, **self._options)
            self._process = self._ending.enter_context(process)
        assert self._process is not None
        return self._process

    @property
    def _alive(self) -> TierProcess | None:
        process = self._process
        return process if process is not None and process.process.poll() is None else None


@pytest.fixture(scope="module")
def proxy_options() -> dict[str, Any]:
    """Of TierProcess."""
    return {}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, proxy_options: dict[str, Any]) -> Iterator[Kept]:
    with ExitStack() as ending:
        yield Kept(tmp_path_factory.mktemp("kept"), ending, proxy_options)


@pytest.fixture
def upstream(kept: Kept) -> SmallUpstream:
    kept.renew()
    return kept.upstream


@pytest.fixture
def spec(kept: Kept, upstream: SmallUpstream) -> ProxySpec:
    return kept.spec


@pytest.fixture
def proxy(kept: Kept, upstream: SmallUpstream) -> TierProcess:
    return kept.proxy()


@pytest.fixture
def new_proxy(spec: ProxySpec, tmp_path: Path) -> Iterator[TierProcess]:
    """One that has counted nothing yet, and does not remember what it was told of the model."""
    with TierProcess("proxy_block", spec, tmp_path) as process:
        yield process
