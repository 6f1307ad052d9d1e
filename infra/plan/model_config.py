"""Reading a model's config.json: out of its folder, the local hub cache, or the hub itself."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contract.models import CONFIG, DEMO_MODEL, DEMO_PREFIX, TENSOR_INDEX
from contract.quantization.table import scheme_of
from contract.web_model import is_address
from infra.plan.hub import HubFiles, HubSilent, ask_hub
from infra.plan.model_families import Config
from infra.plan.model_files import (
    BadModel,
    indexed_files,
    parse_config,
    quantized,
    weight_file_names,
)
from infra.plan.quantized_files import quantization_sign
from infra.plan.web_model import ask_address

_DEMO_CONFIG = Path(__file__).with_name("demo_model_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS = (".safetensors", ".bin", TENSOR_INDEX)


@dataclass(frozen=True)
class ModelConfig:
    """A config.json; None where it cannot be had from here, and then `reason` says why.

    `commit` "" where the model has none, or it was not asked for. `weight_files` are the files that
    ranks read weights from, with sizes in bytes; empty where only the ranks can see them.
    """

    config: Config | None
    reason: str = ""
    commit: str = ""
    weight_files: Mapping[str, int] = field(default_factory=dict)


def is_hub_id(name: str) -> bool:
    """Whether a model of this name comes from the hub where there is no folder of this name."""
    return _HUB_ID.fullmatch(name) is not None


def is_fetched(name: str) -> bool:
    """Whether the ranks fetch a model of this name, where they have no folder of this name."""
    return name.startswith(DEMO_PREFIX) or is_address(name) or is_hub_id(name)


def read_model_config(
    name: str, revision: str = "", hub_token: str = "", *, newest: bool = False
) -> ModelConfig:
    """The config.json of a demo model, a folder, an address or a hub id; raises BadModel.

    With `newest` the hub is asked what the revision is now, whatever the cache has. `hub_token` is
    the stack's, as ask_hub takes it.
    """
    if name.startswith(DEMO_PREFIX):
        if name != DEMO_MODEL:
            raise BadModel(f"is no demo model; there is {DEMO_MODEL}")
        return ModelConfig(parse_config(_DEMO_CONFIG.read_text("utf-8")))
    if is_address(name):
        found = _asked(lambda: ask_address(name))
        if found.commit and revision not in ("", found.commit):
            raise BadModel(f"is {found.commit} now, and model_revision says {revision!r}")
        return found
    try:
        folder = Path(name).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:
        raise BadModel(f"is no usable path: {error}") from error
    if is_folder:
        return _in_folder(folder)
    if not is_hub_id(name):
        # The folder may be there where the ranks run, so that this is not an error yet.
        return ModelConfig(None, f"there is no folder {name} here")
    cached = None if newest else _cached(name, revision)
    return cached or _asked(lambda: ask_hub(name, revision, hub_token))


def _in_folder(folder: Path) -> ModelConfig:
    """Here may be the configuration alone: then nothing is said of weights that only ranks have."""
    try:
        found = _config_in(folder)
        names = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        index = None
        if TENSOR_INDEX in names:
            index = indexed_files((folder / TENSOR_INDEX).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadModel(f"is a folder whose {CONFIG} cannot be read: {error}") from error
    if not any(name.endswith(_WEIGHTS) for name in names):
        return found
    assert found.config is not None
    weights = {name: names[name] for name in weight_file_names(names, index, found.config)}
    return ModelConfig(found.config, weight_files=weights)


def _config_in(folder: Path) -> ModelConfig:
    config = parse_config((folder / CONFIG).read_text("utf-8"))
    if sign := quantization_sign(folder, scheme_of(config)):
        raise quantized(config, sign)
    return ModelConfig(config)


def _cached(name: str, revision: str) -> ModelConfig | None:
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, CONFIG, revision=revision or None)
    except ValueError as error:
        raise BadModel(f"is no hub id: {error}") from error
    # Of the files beside it only those are here that a rank has asked for.
    return _config_in(Path(found).parent) if isinstance(found, str) else None


def _asked(ask: Callable[[], HubFiles]) -> ModelConfig:
    try:
        found = ask()
    except HubSilent as error:
        return ModelConfig(None, str(error))
    return ModelConfig(found.config, commit=found.commit, weight_files=found.weight_files)
