"""What the plan asks of the model hub: a commit, its list of files, its small JSON files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from contract.hub import hub_endpoint, read_refusal, unreachable
from contract.models import CONFIG, TENSOR_INDEX
from infra.plan.model_files import (
    BadModel,
    indexed_files,
    parse_config,
    weight_file_names,
)

HUB_TIMEOUT_S = 5.0


class HubSilent(Exception):
    """The hub does not tell: no network, no right to read. The message says which, and why."""


@dataclass(frozen=True)
class HubFiles:
    """A model of the hub at one commit; `weight_files` has their sizes in bytes."""

    commit: str
    config: dict[str, Any]
    weight_files: Mapping[str, int] = field(default_factory=dict)


def ask_hub(name: str, revision: str, hub_token: str = "") -> HubFiles:
    """The model's newest commit of a revision ("": main), checked by its list of files.

    `hub_token` is the stack's; "": HF_TOKEN, or the token file of the hub's own tools. Raises
    HubSilent, and BadModel for what can never be served.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise HubSilent("it is not in the hub cache and HF_HUB_OFFLINE is set")
    token = hub_token or _token_of_this_machine()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True) as client:
            return _Repository(client, name, revision or "main", bool(token)).read()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise HubSilent(unreachable(str(error) or type(error).__name__)) from error


@dataclass(frozen=True)
class _Repository:
    client: httpx.Client
    name: str
    revision: str
    with_token: bool

    def read(self) -> HubFiles:
        endpoint = hub_endpoint()
        revision = quote(self.revision, safe="")
        about = f"{endpoint}/api/models/{self.name}/revision/{revision}?blobs=true"
        try:
            answer = self._get(about).json()
            commit = str(answer["sha"])
            sizes = {str(row["rfilename"]): row.get("size") for row in answer["siblings"]}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HubSilent(f"{about} does not answer as the hub does: {error}") from error
        files = f"{endpoint}/{self.name}/resolve/{commit}"
        if CONFIG not in sizes:
            raise BadModel(f"has no {CONFIG} at {self.revision}: it is no model for transformers")
        config = parse_config(self._get(f"{files}/{CONFIG}").text)
        index = None
        if TENSOR_INDEX in sizes:
            index = indexed_files(self._get(f"{files}/{TENSOR_INDEX}").text)
        weights = weight_file_names(sizes, index, config)
        return HubFiles(commit, config, {file: int(sizes[file] or 0) for file in weights})

    def _get(self, url: str) -> httpx.Response:
        answer = self.client.get(url)
        if answer.status_code < 400:
            return answer
        refusal = read_refusal(
            answer.status_code, answer.headers, self.name, with_token=self.with_token
        )
        named = f"model_revision = {self.revision!r}: " if refusal.key == "model_revision" else ""
        raise HubSilent(named + refusal.reason)


def _token_of_this_machine() -> str:
    """As the hub's own tools find it."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    path = os.environ.get("HF_TOKEN_PATH") or f"{home}/token"
    try:
        return Path(os.path.expandvars(path)).expanduser().read_text("utf-8").strip()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return ""
