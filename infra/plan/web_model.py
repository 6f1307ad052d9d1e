"""What the plan asks of a web server, or a bucket, that gives out a model's folder."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from contract.bucket import BucketError, Locate, locate_files
from contract.hub import is_transient
from contract.models import CONFIG, TENSOR_INDEX
from contract.web_model import OTHER_FILES, WebFile, content_digest, weight_files
from infra.plan.hub import HUB_TIMEOUT_S, HubFiles, HubSilent
from infra.plan.model_files import BadModel, indexed_files, parse_config, weight_file_names


def ask_address(address: str) -> HubFiles:
    """The model below an address; `commit` is the digest that the ranks find too.

    Raises HubSilent, and BadModel for what can never be served.
    """
    try:
        with httpx.Client(timeout=HUB_TIMEOUT_S, follow_redirects=True) as client:
            return _Folder(client, locate_files(address)).read()
    except BucketError as error:
        raise HubSilent(f"it {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise HubSilent(f"it cannot be reached ({error or type(error).__name__})") from error


@dataclass(frozen=True)
class _Folder:
    client: httpx.Client
    locate: Locate

    def read(self) -> HubFiles:
        config = self._get(CONFIG)
        if config is None:
            raise BadModel(f"has no {CONFIG}")
        index = self._get(TENSOR_INDEX)
        parsed = parse_config(config.decode("utf-8", "replace"))
        indexed = None if index is None else indexed_files(index.decode("utf-8", "replace"))
        found = {CONFIG: WebFile(len(config))}
        if index is not None:
            found[TENSOR_INDEX] = WebFile(len(index))
        for name in (*OTHER_FILES, *weight_files(index)):
            if (answer := self._asked("HEAD", name)) is not None:
                length = answer.headers.get("Content-Length", "")
                size = int(length) if length.isdecimal() else None
                found[name] = WebFile(size, answer.headers.get("ETag", ""))
        weights = weight_file_names(found, indexed, parsed)
        sizes = {name: found[name].size or 0 for name in weights}
        return HubFiles(content_digest(config, index, found), parsed, sizes)

    def _get(self, name: str) -> bytes | None:
        answer = self._asked("GET", name)
        return None if answer is None else answer.content

    def _asked(self, method: str, name: str) -> httpx.Response | None:
        """None where there is no such file."""
        url = self.locate(method, name)
        answer = self.client.request(method, url, headers={"Accept-Encoding": "identity"})
        if answer.status_code == 404:
            return None
        if answer.status_code >= 400:
            later = "; try again" if is_transient(answer.status_code) else ""
            # Behind the ? is the signature of a bucket's.
            raise HubSilent(f"{url.partition('?')[0]} answers {answer.status_code}{later}")
        return answer
