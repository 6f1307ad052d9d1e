"""The secrets of a stack: keys of their own beside splitstack:deployment, encrypted by Pulumi."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pulumi

from contract.api_keys import ApiKeysError, read_api_keys
from contract.faults import MISSING, Fault
from contract.signature import ROLLOUT_KEY_NAME, management_key, rollout_key, signing_key
from contract.specs import MINIMUM_TOKEN_BYTES
from infra.stack.config import DeploymentConfig

NAMESPACE = "splitstack"
_SET_LINES = {
    "group_token": "pulumi config set --secret splitstack:group_token $(openssl rand -hex 32)",
    "hub_token": "pulumi config set --secret splitstack:hub_token",
    "s3_credentials": "pulumi config set --secret splitstack:s3_credentials < ~/.aws/credentials",
    "api_keys": "pulumi config set --secret splitstack:api_keys < api_keys.json",
    "session_store_password": "pulumi config set --secret splitstack:session_store_password",
}


@dataclass(frozen=True)
class StackSecrets:
    """What processes get as mounted files; None where the stack has none."""

    group_token: pulumi.Output[str]
    hub_token: pulumi.Output[str] | None = None
    s3_credentials: pulumi.Output[str] | None = None
    api_keys: pulumi.Output[str] | None = None
    session_store_password: pulumi.Output[str] | None = None

    @property
    def management_key(self) -> pulumi.Output[str]:
        """What callers of verbs that change something prove; a secret as the token is."""
        return self._derived(management_key)

    @property
    def signing_key(self) -> pulumi.Output[str]:
        """What a spec that is pushed is signed with, in hexadecimal digits."""
        return self._derived(lambda token: signing_key(token).hex())

    @property
    def rollout_key(self) -> pulumi.Output[str]:
        """The API key of the rollout."""
        return self._derived(rollout_key)

    @property
    def served_api_keys(self) -> pulumi.Output[str] | None:
        """The list for the inference server, with the rollout's entry; None: everybody may ask."""
        if self.api_keys is None:
            return None
        return pulumi.Output.all(self.api_keys, self.rollout_key).apply(lambda both: _with(*both))

    def _derived(self, derive: Callable[[bytes], str]) -> pulumi.Output[str]:
        return self.group_token.apply(lambda token: derive(token.strip().encode()))


def read_secrets() -> tuple[dict[str, str], list[Fault]]:
    """The plain values of the secrets in the stack file, and a fault for each not encrypted.

    Read plain because a check inside an Output would come after the first object.
    """
    values, faults = {}, []
    for name, line in _SET_LINES.items():
        key = f"{NAMESPACE}:{name}"
        value = pulumi.runtime.get_config(key)
        if value is None:
            continue
        values[name] = str(value)
        if not _is_encrypted(key):
            faults.append(Fault(key, MISSING, f"is in plain text in the stack file; `{line}`"))
    return values, faults


def access_faults(deployment: DeploymentConfig, secrets: Mapping[str, str]) -> Iterator[Fault]:
    """Where it is not said who may ask the public API."""
    server, key = deployment.inference_server, "inference_server.anonymous"
    if not server.enabled:
        return
    if server.anonymous and "api_keys" in secrets:
        rule = f"is refused beside {NAMESPACE}:api_keys, which ask everybody for a key"
        yield Fault(key, server.anonymous, rule)
    elif not server.anonymous and "api_keys" not in secrets:
        rule = (
            "there are no API keys: everybody who reaches the inference server could ask; "
            f"`splitstack api-key NAME` makes one and `{_SET_LINES['api_keys']}` keeps it, or set "
            "this to true"
        )
        yield Fault(key, server.anonymous, rule)


def secret_outputs(values: Mapping[str, str]) -> StackSecrets:
    """Values that were read, marked so that neither the state nor a log shows them."""
    return StackSecrets(**{name: pulumi.Output.secret(value) for name, value in values.items()})


def _with(api_keys: str, key: str) -> str:
    own = {"name": ROLLOUT_KEY_NAME, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    return json.dumps([*json.loads(api_keys or "[]"), own])


def secret_faults(values: Mapping[str, str], where: str) -> Iterator[Fault]:
    """Everything wrong with them; `where` is what stands before their names."""
    for name in values.keys() - _SET_LINES.keys():
        yield Fault(f"{where}{name}", MISSING, f"unknown key; known are {', '.join(_SET_LINES)}")
    token, line = values.get("group_token"), _SET_LINES["group_token"]
    key = f"{where}group_token"
    if token is None:
        yield Fault(key, MISSING, f"is required: ranks prove it to one another; `{line}`")
    elif len(token.strip().encode()) < MINIMUM_TOKEN_BYTES:
        yield Fault(key, MISSING, f"must have at least {MINIMUM_TOKEN_BYTES} bytes; `{line}`")
    # A running server goes on with the keys before, those taken away among them, and one that
    # starts ends.
    try:
        keys = read_api_keys(values.get("api_keys", "[]"))
    except ApiKeysError as error:
        rule = 'must be a JSON list, as in [{"name": "me", "sha256": "<hex digest of the key>"}]'
        for fault in error.faults:
            yield Fault(f"{where}api_keys", MISSING, f"{rule}: {fault}")
    else:
        if any(key.name == ROLLOUT_KEY_NAME for key in keys):
            rule = f"has an entry {ROLLOUT_KEY_NAME}, which is the name of the stack's own"
            yield Fault(f"{where}api_keys", MISSING, rule)


def _is_encrypted(key: str) -> bool:
    secret_keys = pulumi.runtime.get_config_secret_keys_env()
    return pulumi.runtime.is_config_secret(key) or key in secret_keys
