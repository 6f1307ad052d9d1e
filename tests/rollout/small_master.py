"""A master and the tiers before it, as far as a rollout sees them: real HTTP, a scripted swap."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from contract.signature import signing_key
from contract.signed_request import SignatureRefused, Verifier
from contract.specs import spec_hash
from web.errors import error_body

TOKEN = b"0123456789abcdef0123456789abcdef"
Answer = tuple[int, Mapping[str, Any]]
Step = dict[str, Any] | Answer


class SmallMaster:
    """Each GET of /group/spec goes one step on in `steps`: a swap's document without its spec, or
    an answer instead.

    The last one stays; `scripts` come before them, one for each push. `serving` is what answers; a
    step of phase serving makes the pushed spec it.
    `forgets` restarts it before as many steps. `refusal` is the answer to a push instead.
    """

    def __init__(self, url: str, steps: list[Step], serving: Any = None) -> None:
        self.url, self.steps = url, steps
        self.serving: dict[str, Any] | None = serving
        self.refusal: Answer | None = None
        self.answer: Answer = (200, {"choices": [{"text": " Paris."}]})
        self.busy: list[Answer] = []
        self.forgets = 0
        self.scripts: list[list[Step]] = []
        self.pushed: list[dict[str, Any]] = []
        self.questions: list[tuple[str, dict[str, Any], str]] = []
        self._verifier = Verifier(signing_key(TOKEN), time.time)
        self._swap: dict[str, Any] | None = None
        self._step = 0
        self._script = steps

    def put(self, header: str, body: bytes) -> Answer:
        try:
            self._verifier.take(header, "PUT", "/group/spec", body)
        except SignatureRefused as error:
            return 401, error_body(401, f"header Authorization: {error}")
        if self.refusal:
            return self.refusal
        spec = json.loads(body)
        self.pushed.append(spec)
        known = {"spec_hash": _hash(body), "model_name": spec["model_name"]}
        if self.serving and self.serving["spec_hash"] == known["spec_hash"]:
            return 200, {"spec_hash": known["spec_hash"], "phase": "serving"}
        self._swap, self._step = known, 0
        self._script = self.scripts.pop(0) if self.scripts else self.steps
        return 202, {"spec_hash": known["spec_hash"], "phase": "preparing"}

    def get(self) -> Answer:
        if self.busy:
            return self.busy.pop(0)
        if self._swap and self.forgets and self._step:
            self.forgets -= 1
            self._swap = None
        if self._swap is None:
            return 200, {"serving": self.serving, "swap": None}
        step = self._script[min(self._step, len(self._script) - 1)]
        self._step += 1
        if isinstance(step, tuple):
            return step
        if step["phase"] == "serving":
            self.serving = self._swap | {"spec": self.pushed[-1]}
        return 200, {"serving": self.serving, "swap": {**self._swap, **step}}

    def ask(self, path: str, question: dict[str, Any], header: str) -> Answer:
        self.questions.append((path, question, header))
        return self.busy.pop(0) if self.busy else self.answer


def _hash(body: bytes) -> str:
    """As spec_hash: a push is rendered in the very form that is hashed."""
    return hashlib.sha256(body).hexdigest()


def step(phase: str, *ranks: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    rows = [{"rank": rank, "state": state, **more} for rank, state in enumerate(ranks)]
    return {"phase": phase, "reason": reason, "since": 1.0, "ranks": rows}


@contextmanager
def small_master(steps: list[Step], serving: Any = None) -> Iterator[SmallMaster]:
    """Serves on a free port until it is left."""

    class Handler(BaseHTTPRequestHandler):
        def _send(self, answer: Answer) -> None:
            status, document = answer
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_PUT(self) -> None:
            self._send(master.put(self.headers.get("Authorization", ""), self._body()))

        def do_GET(self) -> None:
            self._send(master.get())

        def do_POST(self) -> None:
            header = self.headers.get("Authorization", "")
            self._send(master.ask(self.path, json.loads(self._body()), header))

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    master = SmallMaster(f"http://127.0.0.1:{server.server_port}", steps, serving)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield master
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serves(spec: Any) -> dict[str, Any]:
    """What `serving` is once the spec is."""
    return {
        "spec_hash": spec_hash(spec),
        "model_name": spec.model_name,
        "commit": "0" * 40,
        "spec": asdict(spec),
    }
