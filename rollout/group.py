"""The master, as who pushes a spec sees it."""

from __future__ import annotations

import secrets
import time
from typing import Any

import httpx

from contract.signed_request import NONCE_BYTES, TOLERANCE_S, sign
from contract.specs import GroupSpec, render
from rollout.answers import answered_error
from rollout.errors import NotNow, RolloutFailed
from rollout.swap import GroupState, parse_state

PATH = "/group/spec"
SERVING = "serving"
# A push is answered at once; whoever takes longer does not live.
TIMEOUT_S = 10.0


class Group:
    """The group whose master is at `url`; `key` signs what is pushed."""

    def __init__(self, url: str, key: bytes) -> None:
        self.url, self._key = url, key
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        self._refused_since: float | None = None

    def close(self) -> None:
        self._client.close()

    def hand_over(self, spec: GroupSpec) -> bool:
        """Whether it is in force already; else its swap has begun, or goes on.

        Raises NotNow, and RolloutFailed where the master refuses it.
        """
        body = render(spec).encode()
        nonce = secrets.token_bytes(NONCE_BYTES)
        headers = {
            "Authorization": sign(self._key, "PUT", PATH, body, time.time(), nonce),
            "Content-Type": "application/json",
        }
        answer = self._ask("PUT", content=body, headers=headers)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise self._not_signed(answered_error(answer))
        self._refused_since = None
        if not answer.is_success:
            raise self._refusal(answer)
        return bool(_document(answer).get("phase") == SERVING)

    def state(self) -> GroupState:
        """Raises NotNow, and RolloutFailed of a master that knows no such path."""
        answer = self._ask("GET")
        if not answer.is_success:
            raise self._refusal(answer)
        try:
            return parse_state(_document(answer))
        except ValueError as error:
            raise RolloutFailed(f"the master answers GET {PATH} in another form: {error}") from None

    def _ask(self, method: str, **arguments: Any) -> httpx.Response:
        try:
            return self._client.request(method, PATH, **arguments)
        except httpx.HTTPError as error:
            raise NotNow(f"the master at {self.url} does not answer: {_words(error)}") from error

    def _not_signed(self, said: str) -> Exception:
        """One whose clock is ahead of ours takes nothing that was signed before it began."""
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since > TOLERANCE_S:
            return RolloutFailed(f"the master does not take the signature: {said}")
        return NotNow(f"the master does not take the signature: {said}")

    def _refusal(self, answer: httpx.Response) -> Exception:
        said = answered_error(answer)
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            return NotNow(f"the master answers {answer.status_code}: {said}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return RolloutFailed(f"the master knows no {PATH}: its image is older than this one")
        return RolloutFailed(f"the master refuses the spec: {said}")


def _document(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _words(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
