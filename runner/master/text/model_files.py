"""The JSON files of a model folder, each of which may be missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.errors import ModelUnavailable


def read_object(path: Path) -> dict[str, Any]:
    """{} without the file; raises ModelUnavailable naming it when it holds anything else.

    Lone surrogates are JSON but no text: no tokenizer takes them.
    """
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text("utf-8"))
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path} is no JSON text: {error}") from error
    if not isinstance(document, dict):
        raise ModelUnavailable(f"{path} is not a JSON object")
    return document
