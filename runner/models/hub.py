"""A model of the hub, in huggingface_hub's own cache: other programs find there what we fetched.

The files come by our own requests: the library begins a file anew after every kill, and leaves what
had come under a name that nobody takes up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.hub import is_transient, read_refusal, unreachable
from runner.errors import ModelUnavailable, ModelUnreachable
from runner.models.fetch import CONNECT_TIMEOUT_S, PARTIAL, Fetcher, RemoteFile
from runner.models.kept import read_json, write_text
from runner.models.progress import FetchProgress

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_ASK_AGAIN_S = 0.5
_FORGOTTEN_S = 24 * 3600.0

# Of the names that a repository has, those that are wanted, in the order in which they are needed.
Choice = Callable[[Iterable[str]], list[str]]


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a commit. `digest` as in RemoteFile."""

    size: int | None = None
    digest: str = ""


Listing = dict[str, ListedFile]


class HubModel:
    """One repository at one revision. Raises ModelUnreachable, ModelUnavailable."""

    def __init__(self, name: str, revision: str, cache: str, patience_s: float) -> None:
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(name)
        except errors.HFValidationError as error:
            reason = "is neither a folder here nor a hub id such as organisation/name"
            raise ModelUnavailable(f"model_name = {name!r}: {reason}") from error
        self._name, self._revision, self._patience_s = name, revision, patience_s
        root = Path(cache or constants.HF_HUB_CACHE).expanduser()
        folder = "--".join(("models", *name.split("/")))
        self._storage, self._locks = root / folder, root / ".locks" / folder

    def fetch(self, choose: Choice, progress: FetchProgress) -> tuple[Path, str]:
        """The folder with what `choose` wants, and its commit. No hub is asked for what is here."""
        commit, listing = self._listing()
        snapshot = self._storage / "snapshots" / commit
        if listing is None:
            return snapshot, commit
        wanted = choose(listing)
        missing = []
        for name in wanted:
            if (here := _linked_bytes(snapshot / name, listing[name])) is None:
                missing.append(name)
            else:
                progress.want({name: here})
                progress.reached(name, here)
        if missing:
            self._fetch(commit, {name: listing[name] for name in missing}, snapshot, progress)
        return snapshot, commit

    def _fetch(
        self, commit: str, missing: Listing, snapshot: Path, progress: FetchProgress
    ) -> None:
        from huggingface_hub import get_token

        token = get_token()
        files = [self._remote(commit, *item) for item in missing.items()]
        self._clean({file.target.name for file in files})
        fetcher = Fetcher(
            self._name,
            {"Authorization": f"Bearer {token}"} if token else {},
            lambda answer: self._refusal(answer.status_code, answer.headers),
            progress,
            self._patience_s,
        )
        fetcher.fetch(files)
        try:
            for file in files:
                _link(file.target, snapshot / file.name)
        except OSError as error:
            reason = f"{snapshot} cannot be written: {error.strerror}"
            raise ModelUnavailable(f"model_name = {self._name!r}: {reason}") from error

    def _remote(self, commit: str, name: str, listed: ListedFile) -> RemoteFile:
        from huggingface_hub import hf_hub_url

        # The hub's cache calls a blob by its digest.
        blob = listed.digest.partition(":")[2] or f"{commit}-{name}"
        return RemoteFile(
            name,
            hf_hub_url(self._name, name, revision=commit),
            self._storage / "blobs" / blob,
            self._locks / f"{blob}.lock",
            listed.size,
            listed.digest,
        )

    def _listing(self) -> tuple[str, Listing | None]:
        """The commit, and its files; None where only what is here is known."""
        if _COMMIT.fullmatch(self._revision):
            kept = self._read_listing(self._revision)
            if kept is not None:
                return self._revision, kept
        try:
            commit, listing = self._ask()
        except ModelUnavailable:
            commit = self._cached_commit()
            if not (self._storage / "snapshots" / commit / "config.json").is_file():
                raise
            return commit, self._read_listing(commit)
        self._keep(commit, listing)
        return commit, listing

    def _ask(self) -> tuple[str, Listing]:
        """Again while the hub cannot answer, unless there is something here to do without it."""
        deadline = time.monotonic() + (0 if self._cached_commit() else self._patience_s)
        pause_s = _ASK_AGAIN_S
        while True:
            try:
                return self._ask_once()
            except ModelUnreachable:
                if time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, CONNECT_TIMEOUT_S)

    def _ask_once(self) -> tuple[str, Listing]:
        import httpx2
        from huggingface_hub import HfApi, errors

        try:
            found = HfApi().model_info(
                self._name,
                revision=self._revision or None,
                files_metadata=True,
                timeout=CONNECT_TIMEOUT_S,
            )
        except errors.HfHubHTTPError as error:
            answer = error.response
            raise self._refusal(answer.status_code, answer.headers) from error
        except errors.OfflineModeIsEnabled as error:
            reason = "is no folder here and not in the cache, and HF_HUB_OFFLINE is set"
            raise ModelUnavailable(f"model_name = {self._name!r}: {reason}") from error
        except httpx2.HTTPError as error:
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelUnreachable(
                f"model_name = {self._name!r}: is no folder here, is not in the cache, and "
                + unreachable(cause)
            ) from error
        except Exception as error:  # whatever a proxy's page makes of the library
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise ModelUnreachable(
                f"model_name = {self._name!r}: the hub's answer cannot be read: {cause}"
            ) from error
        if not found.sha:
            raise ModelUnreachable(f"model_name = {self._name!r}: the hub names no commit")
        return found.sha, {item.rfilename: _listed(item) for item in found.siblings or ()}

    def _refusal(self, status: int, headers: Any) -> ModelUnavailable:
        from huggingface_hub import get_token

        refusal = read_refusal(status, headers, self._name, with_token=bool(get_token()))
        value = {"model_name": self._name, "model_revision": self._revision}[refusal.key]
        kind = ModelUnreachable if is_transient(status) else ModelUnavailable
        return kind(f"{refusal.key} = {value!r}: {refusal.reason}")

    def _cached_commit(self) -> str:
        if _COMMIT.fullmatch(self._revision):
            known = self._storage / "snapshots" / self._revision
            return self._revision if known.is_dir() else ""
        try:
            return (self._storage / "refs" / (self._revision or "main")).read_text().strip()
        except OSError:
            return ""

    def _listing_file(self, commit: str) -> Path:
        return self._storage / "listings" / f"{commit}.json"

    def _read_listing(self, commit: str) -> Listing | None:
        try:
            rows = read_json(self._listing_file(commit))
            return {name: ListedFile(**row) for name, row in rows.items()}
        except (TypeError, AttributeError):
            return None

    def _keep(self, commit: str, listing: Listing) -> None:
        """So that the commit's files are known without the hub; a cache to be read only does
        without."""
        rows = {name: asdict(file) for name, file in listing.items()}
        with contextlib.suppress(OSError):
            write_text(self._listing_file(commit), json.dumps(rows, indent=1))
            if commit != self._revision:
                write_text(self._storage / "refs" / (self._revision or "main"), commit)

    def _clean(self, wanted: set[str]) -> None:
        """What nobody will take up: the library's own partial files, and ours of other commits."""
        for path in (self._storage / "blobs").glob("*.incomplete"):
            self._remove_unheld(path, path.name.partition(".")[0])
        for path in (self._storage / "blobs").glob(f"*{PARTIAL}"):
            blob = path.name.removesuffix(PARTIAL)
            with contextlib.suppress(OSError):
                if blob not in wanted and time.time() - path.stat().st_mtime > _FORGOTTEN_S:
                    self._remove_unheld(path, blob)

    def _remove_unheld(self, path: Path, blob: str) -> None:
        """A blob's lock is held while it is fetched, by the library too."""
        with contextlib.suppress(OSError), (self._locks / f"{blob}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _listed(sibling: Any) -> ListedFile:
    """Of a file in git's large file storage the hub tells SHA-256, of others git's own digest."""
    sha256 = getattr(sibling.lfs, "sha256", None) or ""
    digest = f"sha256:{sha256}" if _SHA256.fullmatch(sha256) else ""
    if not sibling.lfs and _SHA1.fullmatch(sibling.blob_id or ""):
        digest = f"git:{sibling.blob_id}"
    return ListedFile(sibling.size, digest)


def _linked_bytes(path: Path, listed: ListedFile) -> int | None:
    """How large a file of the snapshot is; None where it is not here, or not whole."""
    try:
        size = path.stat().st_size
    except OSError:
        return None
    return size if listed.size in (None, size) else None


def _link(blob: Path, path: Path) -> None:
    """As the hub's cache has it: a relative link, or where there are none the file itself."""
    with contextlib.suppress(OSError):
        if path.samefile(blob):
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        made.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:
        made = blob
    made.replace(path)
