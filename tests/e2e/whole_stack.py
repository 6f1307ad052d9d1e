"""A rank group with a proxy block and the inference server in front of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from runner.models.folder import resolve_model
from tests.e2e.rank_group import RankGroup
from tests.web.tier_process import TierProcess

MODEL = "demo:smollm2-135m-instruct"
BLOCK = "block-1"


class WholeStack:
    """Two ranks of the demo model and every tier. `master_url` for what only the master knows;
    extra keywords go into the InferenceServerSpec."""

    def __init__(self, folder: Path, **server: Any) -> None:
        self._folder, self._server_settings = folder, server
        self._ending = ExitStack()

    def __enter__(self) -> WholeStack:
        try:
            self._start()
        except BaseException:
            self._ending.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def _start(self) -> None:
        model = str(resolve_model(MODEL, weights=True).path)
        group = RankGroup(model, [(0, 15), (15, 30)], self._folder)
        self._ending.callback(group.stop)
        group.start_all()
        self.master_url = group.url
        name = group.spec.deployment_name
        sessions = SessionsSpec(str(self._folder / "sessions.sqlite3"))
        proxy_spec = ProxySpec(BLOCK, name, group.url, sessions=sessions)
        proxy = TierProcess("proxy_block", proxy_spec, self._folder)
        self._ending.enter_context(proxy)
        settings = {"request_log_path": str(self._folder / "requests.sqlite3")}
        spec = InferenceServerSpec(
            name, (BlockSpec(BLOCK, proxy.url),), **(settings | self._server_settings)
        )
        self.server = self._ending.enter_context(
            TierProcess("inference_server", spec, self._folder)
        )
        self.url = self.server.url
