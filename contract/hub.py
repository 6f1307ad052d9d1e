"""The model hub, as the plan and the ranks ask it: where it is, and what its refusals mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

TOKEN_KEY = "splitstack:hub_token"  # noqa: S105 (a key's name)
_GIVE_A_TOKEN = f"give a token ({TOKEN_KEY}, or HF_TOKEN on one machine)"
# What the hub says to a token that it does not know; other 401s are about the model.
_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 (a message)


def hub_endpoint() -> str:
    """HF_ENDPOINT, or the public hub; without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_transient(status: int) -> bool:
    """Whether the same question may be answered later: busy, too many, broken on their side."""
    return status in (408, 425, 429) or status >= 500


@dataclass(frozen=True, slots=True)
class HubRefusal:
    """What a refusal means: the key of common_params that it is about, and the sentence."""

    key: str
    reason: str


def read_refusal(
    status: int, headers: Mapping[str, str], name: str, *, with_token: bool
) -> HubRefusal:
    """The meaning of a status from 400 on. `headers` are the answer's, looked up in any case."""
    code = headers.get("X-Error-Code", "")
    message = headers.get("X-Error-Message", "")
    if code == "RevisionNotFound":
        return HubRefusal("model_revision", f"{name} has no such revision (404)")
    if is_transient(status):
        return HubRefusal("model_name", f"the hub cannot answer now ({status}); try again")
    if status == 401 and (message == _BAD_TOKEN or (with_token and code != "GatedRepo")):
        reason = f"the hub refuses the token (401): wrong, revoked or expired; renew {TOKEN_KEY}"
        return HubRefusal("model_name", f"{reason}, or HF_TOKEN on one machine")
    if code == "GatedRepo":
        return HubRefusal("model_name", _gated(status, name, with_token=with_token))
    if status == 401:
        reason = f"the hub has no such model, or it is private (401): {_GIVE_A_TOKEN}"
        return HubRefusal("model_name", reason)
    if status == 403:
        reason = f"the token may not read it (403): give it the right to read {name}"
        return HubRefusal("model_name", reason)
    if status == 404:
        hidden = (
            "that this token may read" if with_token else f"in public; if private, {_GIVE_A_TOKEN}"
        )
        return HubRefusal("model_name", f"the hub has no such model (404) {hidden}")
    return HubRefusal("model_name", f"the hub answers {status} {message}".rstrip())


def _gated(status: int, name: str, *, with_token: bool) -> str:
    terms = f"{hub_endpoint()}/{name}"
    if with_token:
        return f"is gated, and the token's owner has no access ({status}): ask for it at {terms}"
    return f"is gated ({status}): accept its terms at {terms} and {_GIVE_A_TOKEN}"


def unreachable(cause: str) -> str:
    """No answer at all: no network, no such host, a closed port."""
    return f"the hub cannot be reached at {hub_endpoint()} ({cause})"
