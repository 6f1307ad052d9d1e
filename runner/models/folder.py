"""Where a model's files are: a folder, a demo model, or a hub repository.

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
from pathlib import Path

from contract.models import DEMO_PREFIX
from runner.errors import ModelUnavailable
from runner.models import demo as demo_model

CONFIG = "config.json"
TENSOR_INDEX = "model.safetensors.index.json"
# A connection that does not answer for this long is no connection.
_HUB_TIMEOUT_S = 10
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
) -> ModelFolder:
    """The model's files on this machine, fetched if need be.

    `name` is "demo:NAME", a folder, or a hub id; `cache` "" is the user's cache. Without `weights`
    only configuration, tokenizer and tensor index are fetched; `tensor_files` names the weight
    files that are wanted beside them. `revision` may be the commit that an earlier call returned,
    for every kind of name. Raises ModelUnavailable with one sentence.
    """
    wanted = tuple(tensor_files or ())
    if name.startswith(DEMO_PREFIX):
        model = demo_model.find_demo_model(name)
        found = ModelFolder(demo_model.prepare(model, _demo_cache(cache)), model.digest)
        _check_revision(name, revision, found.commit)
    elif (folder := Path(name).expanduser()).is_dir():
        found = ModelFolder(folder.resolve(), _folder_commit(name, folder))
        _check_revision(name, revision, found.commit)
    elif name.startswith(("/", "./", "../", "~")):
        raise ModelUnavailable(f"model_name = {name!r}: there is no such folder")
    else:
        patterns = _TEXT_PATTERNS + ((_TENSOR_PATTERN,) if weights and not wanted else wanted)
        found = _fetch_from_hub(name, revision, cache, patterns)
    _check_files(name, found.path, wanted, weights)
    return found


def _demo_cache(cache: str) -> Path:
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


def _fetch_from_hub(name: str, revision: str, cache: str, patterns: tuple[str, ...]) -> ModelFolder:
    """huggingface_hub reads HF_TOKEN, HF_TOKEN_PATH, HF_HOME and HF_ENDPOINT itself."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            cache_dir=cache or None,
            allow_patterns=list(patterns),
            ignore_patterns=list(_IGNORED_PATTERNS),
            etag_timeout=_HUB_TIMEOUT_S,
        )
    except errors.HFValidationError as error:
        reason = "is neither a folder here nor a hub id such as organisation/name"
        raise ModelUnavailable(f"model_name = {name!r}: {reason}") from error
    except errors.GatedRepoError as error:
        reason = "is gated: accept its terms on the hub and set HF_TOKEN"
        raise ModelUnavailable(f"model_name = {name!r}: {reason}") from error
    except errors.RevisionNotFoundError as error:
        rule = f"{name} has no such revision"
        raise ModelUnavailable(f"model_revision = {revision!r}: {rule}") from error
    except errors.RepositoryNotFoundError as error:
        reason = "is no folder here, and the hub has no such model, or HF_TOKEN may not read it"
        raise ModelUnavailable(f"model_name = {name!r}: {reason}") from error
    except errors.LocalEntryNotFoundError as error:
        reason = "is no folder here, is not in the cache, and the hub cannot be reached"
        raise ModelUnavailable(f"model_name = {name!r}: {reason}") from error
    except Exception as error:  # whatever its HTTP client, the proxy or the disk raises
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelUnavailable(f"model_name = {name!r}: the download failed: {cause}") from error
    path = Path(folder)
    return ModelFolder(path, path.name)


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
