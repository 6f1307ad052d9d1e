"""One tier as the process that users run, on a free port of this machine."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from contract.specs import render
from infra.local.process import die_with_parent
from tests.waiting import free_ports, wait_for

# A second's work; on a machine that runs other tests too it may take its time.
STARTUP_S = 60


# As `python -m MODULE`, with other values of MODULE.NAME.
_WITH_VALUES = """
import importlib, json, runpy, sys
for place, value in json.loads(sys.argv.pop(1)).items():
    module, _, name = place.rpartition(".")
    setattr(importlib.import_module(module), name, value)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


class TierProcess:
    """`python -m MODULE --spec FILE OPTIONS`; the spec gets a free port unless given one.

    `comment_s` and `last_send_s` replace COMMENT_S and LAST_SEND_S of web.events, `patience_s` and
    `silence_s` PATIENCE_S and SILENCE_S of web.carried_request, `request_timeout_s`
    web.http_protocol.REQUEST_TIMEOUT_S.
    """

    def __init__(
        self,
        module: str,
        spec: Any,
        folder: Path,
        port: int | None = None,
        *options: str,
        comment_s: float | None = None,
        patience_s: float | None = None,
        silence_s: float | None = None,
        last_send_s: float | None = None,
        request_timeout_s: float | None = None,
    ) -> None:
        self.port = port or free_ports(1)[0]
        address = spec.bind_address or "127.0.0.1"
        self.url = f"http://{address}:{self.port}"
        spec = dataclasses.replace(spec, bind_address=address, port=self.port)
        file = folder / f"{module}-{self.port}.json"
        file.write_text(render(spec))
        self._errors = (folder / f"{module}-{self.port}.log").open("w+")
        started = ["-m", module]
        values = {
            "web.events.COMMENT_S": comment_s,
            "web.carried_request.PATIENCE_S": patience_s,
            "web.carried_request.SILENCE_S": silence_s,
            "web.events.LAST_SEND_S": last_send_s,
            "web.http_protocol.REQUEST_TIMEOUT_S": request_timeout_s,
        }
        if given := {name: value for name, value in values.items() if value is not None}:
            started = ["-c", _WITH_VALUES, json.dumps(given), module]
        command = [sys.executable, *started, "--spec", str(file), *options]
        self.process = subprocess.Popen(command, stderr=self._errors, preexec_fn=die_with_parent())

    def __enter__(self) -> TierProcess:
        wait_for(self._lives, STARTUP_S)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._errors.close()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def errors(self) -> str:
        """What it wrote to standard error."""
        return Path(self._errors.name).read_text()

    def _lives(self) -> bool:
        assert self.process.poll() is None, self.errors()
        try:
            # Asked for a second or more: a client costs more than that nobody listens.
            socket.create_connection((urlsplit(self.url).hostname, self.port), timeout=1).close()
            return httpx.get(f"{self.url}/livez", timeout=1).status_code == 200
        except (OSError, httpx.HTTPError):
            return False
