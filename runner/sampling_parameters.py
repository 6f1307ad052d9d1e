"""How the next token of one request is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from contract.generation import ENGINE_BOUNDS, Bounds
from runner.errors import InvalidField

MAX_LOGPROBS = 20
_LOGPROBS = Bounds(int, -1, MAX_LOGPROBS, f"an integer from 0 to {MAX_LOGPROBS}")
MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_STOP_TOKEN_IDS = 64


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Parameters of one request, checked when made; raises InvalidField.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0, repetition_penalty 1 and the other
    penalties 0 switch themselves off. `logprobs` is the number of alternatives reported beside the
    sampled token: -1 reports nothing, 0 only the sampled token's own log probability (of the
    distribution before temperature and filters). `seed` None means: the API draws one.
    Presence and frequency penalties count generated tokens only (OpenAI's definition);
    repetition_penalty counts prompt and generated tokens (transformers' definition).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int = -1

    def __post_init__(self) -> None:
        for name, bounds in (*ENGINE_BOUNDS.items(), ("logprobs", _LOGPROBS)):
            value = getattr(self, name)
            if not bounds.hold(value) and not (name == "seed" and value is None):
                raise InvalidField(name, value, f"must be {bounds.rule}")
        self._check_stop_token_ids()
        self._check_logit_bias()

    def _check_stop_token_ids(self) -> None:
        ids = self.stop_token_ids
        if not isinstance(ids, tuple) or len(ids) > MAX_STOP_TOKEN_IDS:
            rule = f"must be a list of at most {MAX_STOP_TOKEN_IDS} token ids"
            raise InvalidField("stop_token_ids", ids, rule)
        for token_id in ids:
            if not _is_integer(token_id) or not 0 <= token_id < 2**31:
                raise InvalidField("stop_token_ids", token_id, "must be token ids (integers)")

    def _check_logit_bias(self) -> None:
        bias = self.logit_bias
        if not isinstance(bias, Mapping) or len(bias) > MAX_LOGIT_BIAS_ENTRIES:
            rule = f"must map at most {MAX_LOGIT_BIAS_ENTRIES} token ids to numbers"
            raise InvalidField("logit_bias", bias, rule)
        for token_id, value in bias.items():
            if not _is_integer(token_id) or not 0 <= token_id < 2**31:
                raise InvalidField("logit_bias", token_id, "keys must be token ids (integers)")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidField("logit_bias", value, "values must be numbers from -100 to 100")
            if not -100 <= value <= 100:
                raise InvalidField("logit_bias", value, "values must be numbers from -100 to 100")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def to_json(self) -> dict[str, Any]:
        """Only what differs from the defaults: it travels with the first chunk of a request."""
        values = asdict(self)
        values["logit_bias"] = {str(key): value for key, value in self.logit_bias.items()}
        return {
            item.name: values[item.name]
            for item in fields(self)
            if getattr(self, item.name) != getattr(_DEFAULTS, item.name)
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SamplingParameters:
        """The inverse of to_json; raises InvalidField for unknown keys and bad values."""
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise InvalidField(str(name), values[name], "is not a sampling parameter")
        arguments = dict(values)
        if "stop_token_ids" in arguments:
            ids = arguments["stop_token_ids"]
            if not isinstance(ids, list | tuple):
                raise InvalidField("stop_token_ids", ids, "must be a list of token ids")
            arguments["stop_token_ids"] = tuple(ids)
        if "logit_bias" in arguments:
            arguments["logit_bias"] = parse_logit_bias(arguments["logit_bias"])
        return cls(**arguments)


def parse_logit_bias(bias: object) -> dict[int, float]:
    """JSON's string keys (OpenAI's form) as token ids; raises InvalidField."""
    if not isinstance(bias, Mapping):
        raise InvalidField("logit_bias", bias, "must map token ids to numbers")
    try:
        return {int(key): value for key, value in bias.items()}
    except (TypeError, ValueError):
        raise InvalidField("logit_bias", bias, "keys must be token ids (integers)") from None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_DEFAULTS = SamplingParameters()
