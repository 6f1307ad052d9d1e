"""Real processes: the inference server, proxy blocks behind it, a small upstream at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from tests.web.small_upstream import DEPLOYMENT, SmallUpstream
from tests.web.tier_process import TierProcess


class Tiers:
    """Starts tiers that end with the test module."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.upstream = stack.enter_context(SmallUpstream())
        self._count = 0

    def proxy_spec(self, block_id: str, **spec: Any) -> ProxySpec:
        """Of a proxy block in front of the upstream, with sessions of its own."""
        self._count += 1
        sessions = SessionsSpec(str(self.folder / f"sessions-{self._count}.sqlite3"))
        return ProxySpec(block_id, DEPLOYMENT, self.upstream.url, sessions=sessions, **spec)

    def proxy(self, block_id: str, *, comment_s: float | None = None, **spec: Any) -> TierProcess:
        """`comment_s` as in TierProcess, here and in `server`."""
        proxy = self.proxy_spec(block_id, **spec)
        process = TierProcess("proxy_block", proxy, self.folder, comment_s=comment_s)
        return self._stack.enter_context(process)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile the upstream waits wherever it would be slow or silent."""
        self.upstream.held = True
        try:
            yield
        finally:
            self.upstream.held = None

    def entered(self, process: TierProcess) -> TierProcess:
        """`process`, which ends with the others."""
        return self._stack.enter_context(process)

    def server(
        self,
        *blocks: BlockSpec,
        options: tuple[str, ...] = (),
        comment_s: float | None = None,
        patience_s: float | None = None,
        **spec: Any,
    ) -> TierProcess:
        """`patience_s` as in TierProcess."""
        server = InferenceServerSpec(DEPLOYMENT, blocks, **spec)
        process = TierProcess(
            "inference_server",
            server,
            self.folder,
            None,
            *options,
            comment_s=comment_s,
            patience_s=patience_s,
        )
        return self._stack.enter_context(process)


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    with ExitStack() as stack:
        yield Tiers(tmp_path_factory.mktemp("tiers"), stack)
