"""A model below an address: a folder that a web server, or a bucket, gives out as it is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from contract.bucket import BucketError, locate_files
from contract.hub import is_transient
from contract.models import CONFIG, TENSOR_INDEX
from contract.web_model import (
    OTHER_FILES,
    WebFile,
    content_digest,
    weight_files,
)
from runner.errors import ModelUnavailable, ModelUnreachable
from runner.models.fetch import CONNECT_TIMEOUT_S, Fetcher, RemoteFile, http_client
from runner.models.kept import read_json, write_text
from runner.models.progress import FetchProgress

if TYPE_CHECKING:
    import httpx2

_LATEST = "latest"
_LISTING = ".files.json"
_FIRST_PAUSE_S = 0.5

Choice = Callable[[Iterable[str]], list[str]]
Listing = dict[str, WebFile]
_Signed = TypeVar("_Signed")


class WebModel:
    """One address. `revision` is "", or the digest that an earlier fetch returned.

    Its files lie below `store` by their digest. Raises ModelUnreachable, ModelUnavailable.
    """

    def __init__(self, address: str, revision: str, store: Path, patience_s: float) -> None:
        self._name = address
        self._revision, self._patience_s = revision, patience_s
        self._store = store / f"web-{hashlib.sha256(address.rstrip('/').encode()).hexdigest()[:16]}"
        self._locate = self._signed(lambda: locate_files(address))

    def fetch(self, choose: Choice, progress: FetchProgress) -> tuple[Path, str]:
        """The folder with what `choose` wants, and its digest."""
        digest, listing = self._listing()
        folder = self._store / digest
        files = [
            RemoteFile(
                name,
                self._url("GET", name),
                folder / name,
                folder / ".locks" / name,
                listing[name].size,
                version=listing[name].version,
            )
            for name in choose(listing)
        ]
        Fetcher(self._name, {}, self._refusal, progress, self._patience_s).fetch(files)
        return folder, digest

    def _listing(self) -> tuple[str, Listing]:
        if self._revision and (kept := self._kept(self._revision)) is not None:
            return self._revision, kept
        try:
            digest, listing = self._ask()
        except ModelUnreachable:
            digest = self._revision or str(read_json(self._store / _LATEST) or "")
            kept = self._kept(digest) if digest else None
            if kept is None:
                raise
            return digest, kept
        if self._revision not in ("", digest):
            raise ModelUnavailable(
                f"model_revision = {self._revision!r}: what {self._name} holds has changed; it is "
                f"{digest} now"
            )
        self._keep(digest, listing)
        return digest, listing

    def _ask(self) -> tuple[str, Listing]:
        import httpx2

        deadline, pause_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                with http_client() as client:
                    return self._ask_once(client)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                cause = (str(error) or type(error).__name__).splitlines()[0]
                failure = ModelUnreachable(f"{self._said('cannot be reached')}: {cause}")
            except ModelUnreachable as error:
                failure = error
            if time.monotonic() + pause_s > deadline:
                raise failure
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, CONNECT_TIMEOUT_S)

    def _ask_once(self, client: httpx2.Client) -> tuple[str, Listing]:
        config = self._read(client, CONFIG)
        if config is None:
            raise ModelUnavailable(self._said(f"there is no {CONFIG}"))
        index = self._read(client, TENSOR_INDEX)
        found = {CONFIG: WebFile(len(config))}
        if index is not None:
            found[TENSOR_INDEX] = WebFile(len(index))
        for name in (*OTHER_FILES, *weight_files(index)):
            answer = client.head(self._url("HEAD", name), headers=_PLAIN)
            if answer.status_code == 404:
                continue
            if answer.status_code >= 400:
                raise self._refusal(answer)
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isdecimal() else None
            found[name] = WebFile(size, answer.headers.get("ETag", ""))
        return content_digest(config, index, found), found

    def _read(self, client: httpx2.Client, name: str) -> bytes | None:
        answer = client.get(self._url("GET", name), headers=_PLAIN)
        if answer.status_code == 404:
            return None
        if answer.status_code >= 400:
            raise self._refusal(answer)
        return answer.content

    def _url(self, method: str, name: str) -> str:
        return self._signed(lambda: self._locate(method, name))

    def _signed(self, sign: Callable[[], _Signed]) -> _Signed:
        try:
            return sign()
        except BucketError as error:
            raise ModelUnavailable(self._said(str(error))) from error

    def _refusal(self, answer: httpx2.Response) -> ModelUnavailable:
        status = answer.status_code
        kind = ModelUnreachable if is_transient(status) else ModelUnavailable
        return kind(self._said(f"{answer.request.url.path} answers {status}"))

    def _said(self, reason: str) -> str:
        return f"model_name = {self._name!r}: {reason}"

    def _kept(self, digest: str) -> Listing | None:
        try:
            rows = read_json(self._store / digest / _LISTING)
            return {name: WebFile(**row) for name, row in rows.items()}
        except (TypeError, AttributeError):
            return None

    def _keep(self, digest: str, listing: Listing) -> None:
        rows = {name: asdict(file) for name, file in listing.items()}
        with contextlib.suppress(OSError):
            write_text(self._store / digest / _LISTING, json.dumps(rows, indent=1))
            write_text(self._store / _LATEST, json.dumps(digest))


_PLAIN = {"Accept-Encoding": "identity"}
