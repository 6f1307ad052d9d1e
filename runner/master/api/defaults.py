"""What a request that does not say gets: default generation parameters, and how they combine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.errors import InvalidField, PromptTooLong
from runner.master.api.bodies import ConfigurationBody, SamplingBody, parse_body, stop_strings
from runner.sampling_parameters import SamplingParameters, parse_logit_bias

GENERATE_MAX_NEW_TOKENS = 2048
COMPLETION_MAX_TOKENS = 16
_REALS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
SAMPLING_FIELDS = (*_REALS, "top_k", "seed")
_MEANS_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class GenerationDefaults:
    """Request, then /set_config, then the model's generation_config.json, then off.

    What /set_config set lives in memory only and is lost with the process.
    """

    def __init__(self, model_defaults: Mapping[str, Any]) -> None:
        self._model = dict(model_defaults)
        self._set: dict[str, Any] = {}

    def update(self, document: Mapping[str, Any]) -> None:
        """Take what `document` names, nothing when any of it is wrong; raises InvalidField."""
        body = parse_body(ConfigurationBody, document)
        given = body.model_dump(exclude_none=True)
        _check_max_tokens("max_new_tokens", given.get("max_new_tokens", 1))
        SamplingParameters(**_sampling_arguments(given))
        if "stop" in given:
            given["stop"] = list(stop_strings(given["stop"]))
        kept = {name: value for name, value in self._set.items() if name not in document}
        self._set = {**kept, **given}

    def current(self) -> dict[str, Any]:
        """Every default in force; null where nothing is set."""
        return {
            name: self._set.get(name, self._model.get(name))
            for name in ConfigurationBody.model_fields
        }

    def sampling(
        self, body: SamplingBody, eos_ids: tuple[int, ...], *, do_sample: bool | None, logprobs: int
    ) -> SamplingParameters:
        """The request's sampling parameters; raises InvalidField.

        `do_sample` false means temperature 0. None: what /set_config says.
        """
        given = body.given(*SAMPLING_FIELDS)
        values = {**self._model, **self._set, **given}
        if do_sample is None and not any(name in given for name in _MEANS_SAMPLING):
            do_sample = self._set.get("do_sample")
        arguments = _sampling_arguments(values)
        if do_sample is False:
            arguments["temperature"] = 0
        stop_ids = tuple(body.stop_token_ids or ())
        if not body.ignore_eos:
            stop_ids += eos_ids
        return SamplingParameters(
            **arguments,
            stop_token_ids=stop_ids,
            logit_bias=parse_logit_bias(body.logit_bias or {}),
            logprobs=logprobs,
        )

    def generate_samples(self, body: SamplingBody, do_sample: bool | None) -> bool:
        """Whether POST /generate samples: as asked, else when the request names a filter or a
        temperature, else the default of /set_config, of the model, of transformers (no)."""
        if do_sample is not None:
            return do_sample
        if body.given(*_MEANS_SAMPLING):
            return True
        return bool(self._set.get("do_sample", self._model.get("do_sample", False)))

    def stop(self, stop: object) -> tuple[str, ...]:
        return stop_strings(self._set.get("stop") if stop is None else stop)

    def max_new_tokens(self, field: str, asked: int | None, otherwise: int, room: int) -> int:
        """How many tokens to generate. What the request asks for must fit into the `room` that
        the prompt leaves; a default is cut to it. Raises InvalidField, PromptTooLong."""
        if asked is not None:
            _check_max_tokens(field, asked)
            if asked > room:
                rule = f"must be at most {room}, what the prompt leaves of the model's context"
                raise PromptTooLong(field, asked, rule)
            return asked
        default: int = self._set.get("max_new_tokens", otherwise)
        return min(default, room)


def _sampling_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {name: values[name] for name in SAMPLING_FIELDS if values.get(name) is not None}
    if arguments.get("top_k") == -1:  # vLLM's word for off
        arguments["top_k"] = 0
    return arguments


def _check_max_tokens(field: str, value: int) -> None:
    if value < 1:
        raise InvalidField(field, value, "must be an integer from 1 up")
