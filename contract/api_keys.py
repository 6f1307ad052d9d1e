"""An API key's entry: made by `splitstack api-key`, held by a stack, read by the inference server.

The key itself is in no file of ours; the entry has its hash.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from contract.faults import faults_of


class ApiKey(BaseModel):
    """Who asks, and what they may; None: no limit of that kind."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(min_length=1, max_length=64)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    reads_all_logs: bool = False


class ApiKeysError(ValueError):
    """A list of keys that cannot be used. `faults` has no value: somebody may have put a key where
    its hash belongs."""

    def __init__(self, faults: list[str], source: str = "") -> None:
        self.faults = faults
        super().__init__(source + "; ".join(faults[:5]))


_ENTRIES = TypeAdapter(list[ApiKey])


def read_api_keys(text: str | bytes) -> list[ApiKey]:
    """The entries of a JSON list; raises ApiKeysError with every fault."""
    try:
        entries = _ENTRIES.validate_json(text)
    except ValidationError as error:
        faults = faults_of(error, whole="the list", unknown=lambda _location: "unknown key")
        raise ApiKeysError([f"{fault.path}: {fault.rule}" for fault in faults]) from None
    twice = [
        f"{field}: two entries have the same"
        for field in ("name", "sha256")
        if len({getattr(entry, field) for entry in entries}) < len(entries)
    ]
    if twice:
        raise ApiKeysError(twice)
    return entries
