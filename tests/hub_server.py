"""A model hub on loopback, as huggingface_hub and httpx ask it: slow, cut or broken at will."""

from __future__ import annotations

import hashlib
import json
import math
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.waiting import wait_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_good"
_LARGE = (".safetensors", ".bin")
_STEP_BYTES = 16 * 1024
_NO_MODEL = ("RepoNotFound", "Repository not found")


@dataclass
class Repository:
    """Files of the one commit, which also goes by `revisions`. `access`: public, private, gated."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    access: str = "public"


@dataclass
class Fault:
    """What the next `times` downloads of `name` get: a status at once, or a cut after bytes."""

    name: str
    status: int = 0
    cut_after: int = -1
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    ignores_ranges: bool = False


@dataclass(frozen=True)
class Download:
    name: str
    first: int
    authorized: bool


class HubServer:
    """`downloads` are the requests for files so far, `served` the bytes that went out by file.

    When `stops_after` bytes of all files have gone out no more do.
    """

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.faults: list[Fault] = []
        self.bytes_per_second = 0
        self.stops_after = math.inf
        self.downloads: list[Download] = []
        self.listings = 0
        self.served: dict[str, int] = {}
        self.most_at_once, self._at_once = 0, 0
        self._lock = threading.Lock()

    def fault(self, name: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.name == name and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    @contextmanager
    def counted(self, download: Download) -> Iterator[None]:
        with self._lock:
            self.downloads.append(download)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def sent(self, name: str, size: int) -> None:
        with self._lock:
            self.served[name] = self.served.get(name, 0) + size

    def served_bytes(self) -> int:
        with self._lock:
            return sum(self.served.values())

    def wait_until_stopped(self) -> None:
        wait_for(lambda: self.served_bytes() >= self.stops_after, what="so much served")

    def go_on(self) -> None:
        self.stops_after = math.inf


def row(name: str, content: bytes) -> dict[str, Any]:
    """A file in the answer about a repository."""
    found: dict[str, Any] = {"rfilename": name, "size": len(content)}
    if name.endswith(_LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        found["blobId"] = hashlib.sha1(sha256.encode()).hexdigest()
    else:
        found["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return found


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            asked = re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path)
            if asked:
                name, revision = asked.groups()
                if (repository := self.readable(name, revision or "main")) is not None:
                    hub.listings += 1
                    siblings = [row(*item) for item in repository.files.items()]
                    body = {"id": name, "sha": repository.commit, "siblings": siblings}
                    self.answer(200, json.dumps(body).encode())
                return
            asked = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
            if asked is None:
                self.answer(404, b"")
                return
            name, revision, file = asked.groups()
            if (repository := self.readable(name, revision)) is not None:
                if file in repository.files:
                    self.download(repository, file)
                else:
                    self.refuse(404, "EntryNotFound", "Entry not found")

        do_HEAD = do_GET  # noqa: N815, the name that the server asks for

        def authorization(self) -> str:
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

        def readable(self, name: str, revision: str) -> Repository | None:
            token, repository = self.authorization(), hub.repositories.get(name)
            if token not in ("", TOKEN, "hf_stranger"):
                self.refuse(401, "", "Invalid credentials in Authorization header")
            elif repository is None or (repository.access == "private" and token != TOKEN):
                self.refuse(404 if token else 401, *_NO_MODEL)
            elif repository.access == "gated" and token != TOKEN:
                self.refuse(403 if token else 401, "GatedRepo", "Access is restricted")
            elif repository.access == "forbidden":
                self.refuse(403, "", "Forbidden: the token lacks the permission")
            elif revision not in (repository.commit, *repository.revisions):
                self.refuse(404, "RevisionNotFound", "Invalid rev id")
            else:
                return repository
            return None

        def download(self, repository: Repository, file: str) -> None:
            content = repository.files[file]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            fault = hub.fault(file) or Fault(file)
            first = self.first_byte(tag) if not fault.ignores_ranges else 0
            with hub.counted(Download(file, first, bool(self.authorization()))):
                if fault.status:
                    self.answer(fault.status, b"", fault.headers)
                    return
                if first > len(content):
                    self.answer(416, b"")
                    return
                headers = {"ETag": tag, "X-Repo-Commit": repository.commit}
                if first:
                    headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                self.head(206 if first else 200, len(content) - first, headers)
                if self.command == "GET":
                    self.send(file, content[first:], fault.cut_after)

        def first_byte(self, tag: str) -> int:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range", tag) == tag
            return int(asked.group(1)) if asked and same else 0

        def send(self, file: str, content: bytes, cut_after: int) -> None:
            whole = content if cut_after < 0 else content[:cut_after]
            try:
                for place in range(0, len(whole), _STEP_BYTES):
                    some = whole[place : place + _STEP_BYTES]
                    while hub.served_bytes() >= hub.stops_after:
                        time.sleep(0.01)
                    self.wfile.write(some)
                    hub.sent(file, len(some))
                    if hub.bytes_per_second:
                        time.sleep(len(some) / hub.bytes_per_second)
            except OSError:
                self.close_connection = True
            if cut_after >= 0:
                self.close_connection = True

        def refuse(self, status: int, code: str, message: str) -> None:
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self.answer(status, b"{}", headers)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.head(status, len(body), {"Content-Type": "application/json", **(headers or {})})
            if self.command == "GET":
                self.wfile.write(body)

        def head(self, status: int, length: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Tests print nothing."""

    return Handler


@contextmanager
def serving(hub: HubServer, certificate: Path | None = None) -> Iterator[str]:
    """The URL at which it answers; https with a certificate whose key lies beside it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if certificate is None else "https"
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
