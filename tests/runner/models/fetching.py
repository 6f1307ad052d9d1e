"""resolve_model in a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.hub_server import HubServer
from tests.waiting import wait_for

# Served to who was killed before, at most.
_IN_SOCKETS_BYTES = 128 * 1024

CODE = """
import json, logging, sys
from runner.errors import ModelUnavailable
from runner.models import folder, progress
logging.basicConfig(level=logging.INFO, format="%(message)s")
name, revision, cache, files, log_each, patience = sys.argv[1:]
progress.LOG_EACH_S = float(log_each)
wanted = {"all": {"weights": True}, "": {}}.get(files, {"tensor_files": files.split(",")})
counted = progress.FetchProgress()
try:
    found = folder.resolve_model(
        name, revision, cache, progress=counted, patience_s=float(patience), **wanted
    )
    answer = {"path": str(found.path), "commit": found.commit}
except ModelUnavailable as error:
    answer = {"error": str(error), "kind": type(error).__name__}
answer |= {"fetched": counted.fetched_bytes, "wanted": counted.wanted_bytes}
print(json.dumps(answer))
loaded = {"torch", "transformers", "numpy"} & set(sys.modules)
assert not loaded, loaded
"""


class Fetching:
    """One such process. Read `answer` once it has ended, `log` are the lines that it logged."""

    def __init__(
        self,
        endpoint: str,
        cache: Path,
        name: str = "org/tiny",
        revision: str = "",
        files: str = "all",
        *,
        log_each_s: float = 10,
        patience_s: float = 8,
        **environment: str,
    ) -> None:
        arguments = [name, revision, str(cache), files, str(log_each_s), str(patience_s)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, *arguments],
            env={
                "HF_ENDPOINT": endpoint,
                "PATH": "",
                "HF_HOME": str(cache.parent / "home"),
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def answer(self) -> dict[str, Any]:
        output, self.log = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, self.log
        return json.loads(output)


def kill_midway(hub: HubServer, served: float, *arguments: Any, **options: Any) -> int:
    """A fetch is killed when so many bytes have gone out and are here; how many have."""
    cache: Path = arguments[1]
    before, here = hub.served_bytes(), _bytes_below(cache)
    hub.stops_after = served
    fetching = Fetching(*arguments, patience_s=300, **options)
    try:
        hub.wait_until_stopped()
        wait_for(
            lambda: _bytes_below(cache) - here > hub.served_bytes() - before - _IN_SOCKETS_BYTES,
            what="what was served is here",
        )
    finally:
        fetching.kill()
    gone_out = hub.served_bytes()
    hub.go_on()
    return gone_out


def _bytes_below(folder: Path) -> int:
    count = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # one that has just come whole
            count += path.lstat().st_size if path.is_file() else 0
    return count


def resolved(endpoint: str, cache: Path, *arguments: str, **options: Any) -> dict[str, Any]:
    return Fetching(endpoint, cache, *arguments, **options).answer
