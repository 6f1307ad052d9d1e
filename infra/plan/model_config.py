"""Reading a model's config.json: out of its folder, the local hub cache, or the hub itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from contract.models import DEMO_MODEL, DEMO_PREFIX, QUANTIZATION_FILES
from infra.plan.model_families import Config
from infra.plan.quantized_files import quantization_sign

HUB_TIMEOUT_S = 5.0
_DEMO_CONFIG = Path(__file__).with_name("demo_model_config.json")
_QUANTIZED = "has quantized weights, which are not served: {}"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


class BadModel(ValueError):
    """What can never be served: a wrong folder, an unknown demo model, quantized weights."""


@dataclass(frozen=True)
class ModelConfig:
    """A config.json; None where it cannot be had from here, and then `reason` says why."""

    config: Config | None
    reason: str = ""


def is_hub_id(name: str) -> bool:
    """Whether a model of this name comes from the hub where there is no folder of this name."""
    return _HUB_ID.fullmatch(name) is not None


def read_model_config(name: str, revision: str = "") -> ModelConfig:
    """The config.json of a demo model, a folder or a hub id; raises BadModel."""
    if name.startswith(DEMO_PREFIX):
        if name != DEMO_MODEL:
            raise BadModel(f"is no demo model; there is {DEMO_MODEL}")
        return ModelConfig(_parsed(_DEMO_CONFIG.read_text("utf-8")))
    try:
        folder = Path(name).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:
        raise BadModel(f"is no usable path: {error}") from error
    if is_folder:
        try:
            return _in_folder(folder)
        except (OSError, UnicodeDecodeError) as error:
            raise BadModel(f"is a folder whose config.json cannot be read: {error}") from error
    if not is_hub_id(name):
        # The folder may be there where the ranks run, so that this is not an error yet.
        return ModelConfig(None, f"there is no folder {name} here")
    return _cached(name, revision) or _downloaded(name, revision)


def _in_folder(folder: Path) -> ModelConfig:
    config = _parsed((folder / "config.json").read_text("utf-8"))
    if sign := quantization_sign(folder):
        raise BadModel(_QUANTIZED.format(sign))
    return ModelConfig(config)


def _parsed(text: str) -> Config:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"has a config.json that is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadModel("has a config.json that is not an object")
    return config


def _cached(name: str, revision: str) -> ModelConfig | None:
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except ValueError as error:
        raise BadModel(f"is no hub id: {error}") from error
    if not isinstance(found, str):
        return None
    return _in_folder(Path(found).parent)


def _downloaded(name: str, revision: str) -> ModelConfig:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return ModelConfig(None, "it is not in the hub cache and HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    files = f"{endpoint}/{name}/resolve/{revision or 'main'}"
    token = os.environ.get("HF_TOKEN", "")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True) as hub:
            answer = hub.get(f"{files}/config.json")
            if answer.status_code != 200:
                return ModelConfig(None, f"{files}/config.json answers {answer.status_code}")
            config = _parsed(answer.text)
            for file in QUANTIZATION_FILES:
                if hub.head(f"{files}/{file}").status_code == 200:
                    raise BadModel(_QUANTIZED.format(f"it has a {file}"))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return ModelConfig(None, f"{endpoint} cannot be reached: {error or type(error).__name__}")
    return ModelConfig(config)
