"""A model below an address: which files are asked for, and what stands for its content.

A web server gives no list of files, and a bucket is asked as one: the names are transformers' own,
and the tensor index has the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from contract.bucket import S3_PREFIX
from contract.models import QUANTIZATION_FILES, SINGLE_FILE, TOKENIZER

PREFIXES = ("https://", "http://", S3_PREFIX)
# What the runner reads beside config.json, tensor index and weights, where it is there.
OTHER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    *QUANTIZATION_FILES,
)


@dataclass(frozen=True, slots=True)
class WebFile:
    """`size` in bytes, None where the server does not say; `version` is its ETag, or ""."""

    size: int | None
    version: str = ""


def is_address(name: str) -> bool:
    """Whether a model_name is the address of a folder on a web server or in a bucket."""
    return name.startswith(PREFIXES)


def weight_files(index: bytes | None) -> list[str]:
    """The files that the tensor index names; without one the single file."""
    if index is None:
        return [SINGLE_FILE]
    try:
        return sorted({str(file) for file in json.loads(index)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def content_digest(config: bytes, index: bytes | None, files: Mapping[str, WebFile]) -> str:
    """Stands for the content as a commit does, as far as the server tells it: 64 hexadecimal
    digits. Every replica of the server must tell the same ETags."""
    rows = sorted((name, file.size, file.version) for name, file in files.items())
    found = hashlib.sha256()
    for part in (config, index or b"", json.dumps(rows).encode()):
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.hexdigest()
