"""Where a model's files are: a folder, a demo model, a web server, or a hub repository.

Imports neither torch nor transformers: the master reads configuration and tokenizer through it.
`python -m runner.models.folder NAME` prints one line of JSON: the folder and the commit, or the
error with exit code 2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from contract.models import CONFIG, DEMO_PREFIX, TENSOR_INDEX
from contract.web_model import is_address
from runner.errors import ModelUnavailable
from runner.models import demo as demo_model
from runner.models.hub import Choice, HubModel
from runner.models.progress import FetchProgress
from runner.models.web_folder import WebModel

# Who waits at a terminal is told soon.
ASKING_PATIENCE_S = 8.0
_TEXT_PATTERNS = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
_TENSOR_PATTERN = "*.safetensors"
# Copies of the same weights in other layouts: sub-folders, and Mistral's own file names.
_IGNORED_PATTERNS = ("*/*", "consolidated*")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder as save_pretrained writes it. `commit` names its content."""

    path: Path
    commit: str


def resolve_model(
    name: str,
    revision: str = "",
    cache: str = "",
    *,
    weights: bool = False,
    tensor_files: Iterable[str] | None = None,
    progress: FetchProgress | None = None,
    patience_s: float = ASKING_PATIENCE_S,
) -> ModelFolder:
    """The model's files on this machine, fetched if need be.

    `name` is "demo:NAME", a folder, an http address, or a hub id; `cache` "" is the user's cache.
    Without `weights` only configuration, tokenizer and tensor index are fetched; `tensor_files`
    names the weight files that are wanted beside them, in the order in which they are read.
    `revision` may be the commit that an earlier call returned, for every kind of name. `progress`
    counts the bytes. What may be mended by trying again is tried until no byte has come for
    `patience_s` seconds.

    Raises ModelUnreachable for that, ModelUnavailable for what stays so, with one sentence.
    """
    wanted = tuple(tensor_files or ())
    if name.startswith(DEMO_PREFIX):
        demo = demo_model.find_demo_model(name)
        found = ModelFolder(demo_model.prepare(demo, _own_cache(cache)), demo.digest)
        _check_revision(name, revision, found.commit)
    elif (folder := Path(name).expanduser()).is_dir():
        found = ModelFolder(folder.resolve(), _folder_commit(name, folder))
        _check_revision(name, revision, found.commit)
    elif name.startswith(("/", "./", "../", "~")):
        raise ModelUnavailable(f"model_name = {name!r}: there is no such folder")
    else:
        model: HubModel | WebModel
        if is_address(name):
            model = WebModel(name, revision, _own_cache(cache), patience_s)
        else:
            model = HubModel(name, revision, cache, patience_s)
        choice = _choice(weights, wanted)
        found = ModelFolder(*model.fetch(choice, progress or FetchProgress()))
    _check_files(name, found.path, wanted, weights)
    return found


def _own_cache(cache: str) -> Path:
    if cache:
        return Path(cache)
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache, "splitstack", "models")


def _folder_commit(name: str, folder: Path) -> str:
    """A digest of what says which weights there are; the weights are too large to read for it."""
    digest = hashlib.sha256()
    for file in (CONFIG, TENSOR_INDEX):
        path = folder / file
        if path.is_file():
            digest.update(path.read_bytes())
        elif file == CONFIG:
            raise ModelUnavailable(
                f"model_name = {name!r}: the folder has no {CONFIG}; "
                "a folder as save_pretrained writes it is needed"
            )
    return digest.hexdigest()


def _check_revision(name: str, revision: str, commit: str) -> None:
    if revision not in ("", commit):
        raise ModelUnavailable(
            f"model_revision = {revision!r}: {name} has no revisions, only its content {commit}; "
            "leave model_revision empty"
        )


def _check_files(name: str, folder: Path, wanted: tuple[str, ...], weights: bool) -> None:
    missing = [file for file in (CONFIG, *wanted) if not (folder / file).is_file()]
    if not missing and weights and not wanted and not any(folder.glob(_TENSOR_PATTERN)):
        missing = [_TENSOR_PATTERN]
    if missing:
        raise ModelUnavailable(f"model_name = {name!r}: {', '.join(missing)} missing in {folder}")


def _choice(weights: bool, tensor_files: tuple[str, ...]) -> Choice:
    """What is read first comes first: configuration, tokenizer and tensor index before weights."""

    def choose(names: Iterable[str]) -> list[str]:
        plain = sorted(name for name in names if not _is_copy(name))
        texts = [name for name in plain if _fits(name, _TEXT_PATTERNS)]
        if tensor_files:
            return texts + [name for name in tensor_files if name in plain]
        return texts + [name for name in plain if weights and _fits(name, (_TENSOR_PATTERN,))]

    return choose


def _is_copy(name: str) -> bool:
    return _fits(name, _IGNORED_PATTERNS)


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def main() -> int:
    """For processes that must not import the runner: the deployment's command line."""
    parser = argparse.ArgumentParser(prog="python -m runner.models.folder", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--revision", default="")
    parser.add_argument("--cache", default="")
    arguments = parser.parse_args()
    try:
        found = resolve_model(arguments.name, arguments.revision, arguments.cache)
    except ModelUnavailable as error:
        print(json.dumps({"error": str(error)}))
        return 2
    print(json.dumps({"path": str(found.path), "commit": found.commit}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
