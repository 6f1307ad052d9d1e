"""Room in a cache that has a limit: models that nobody asks for any more go."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from runner.models.demo import MANIFEST

logger = logging.getLogger(__name__)

_WEB = re.compile(r"web-[0-9a-f]{16}")
_HUB_PREFIX = "models--"


def forget_other_models(cache: Path, keep: Collection[Path]) -> None:
    """Of what this project keeps in `cache` only the models in the folders `keep` stay.

    Those are folders as resolve_model returns them, wherever they lie. Whatever else the cache has
    is left alone, and so is what cannot be removed.
    """
    for folder in _folders(cache):
        if not _is_a_model(folder):
            continue
        kept = [path for path in keep if path.is_relative_to(folder)]
        if not kept:
            _remove(folder)
        elif folder.name.startswith(_HUB_PREFIX):
            _forget_commits(folder, kept)
        elif folder not in kept:  # a web server's, with a folder for each content that it had
            for content in _folders(folder):
                if content not in kept:
                    _remove(content)


def _forget_commits(storage: Path, kept: Collection[Path]) -> None:
    """Commits of one repository share files, which lie under `blobs` by their digests."""
    snapshots = storage / "snapshots"
    gone = [folder for folder in _folders(snapshots) if folder not in kept]
    files = {file for folder in gone for file in _linked(folder)}
    for folder in gone:
        _remove(folder)
    for file in files - {file for folder in _folders(snapshots) for file in _linked(folder)}:
        with contextlib.suppress(OSError):
            file.unlink()


def _is_a_model(folder: Path) -> bool:
    """The hub's, a web server's, or one made of a package."""
    return (
        folder.name.startswith(_HUB_PREFIX)
        or _WEB.fullmatch(folder.name) is not None
        or (folder / MANIFEST).is_file()
    )


def _folders(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(path for path in folder.iterdir() if path.is_dir())


def _linked(snapshot: Path) -> Iterator[Path]:
    return (path.resolve() for path in snapshot.rglob("*") if path.is_symlink())


def _remove(folder: Path) -> None:
    logger.info("%s is removed: nobody asks for it any more", folder)
    shutil.rmtree(folder, ignore_errors=True)
