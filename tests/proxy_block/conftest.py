"""A proxy block process in front of a small upstream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.specs import ProxySpec, SessionsSpec
from tests.web.small_upstream import DEPLOYMENT, SmallUpstream
from tests.web.tier_process import TierProcess


@pytest.fixture
def upstream() -> Iterator[SmallUpstream]:
    with SmallUpstream() as upstream:
        yield upstream


@pytest.fixture
def spec(upstream: SmallUpstream, tmp_path: Path) -> ProxySpec:
    return ProxySpec(
        block_id="block-1",
        deployment_name=DEPLOYMENT,
        upstream_url=upstream.url,
        system_message="the block's",
        generation_config={"max_new_tokens": 20, "temperature": 0.5},
        sessions=SessionsSpec(path=str(tmp_path / "sessions.sqlite3")),
        request_deadline_s=20,
    )


@pytest.fixture
def proxy(spec: ProxySpec, tmp_path: Path) -> Iterator[TierProcess]:
    with TierProcess("proxy_block", spec, tmp_path) as process:
        yield process
