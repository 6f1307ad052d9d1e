"""What a request that does not say gets: default generation parameters, and how they combine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from contract.generation import ENGINE_BOUNDS, MEANS_SAMPLING, SEED_LIMIT
from runner.master.api.bodies import (
    DRAW_A_SEED,
    ConfigurationBody,
    GenerateBody,
    SamplingBody,
    parse_body,
    stop_strings,
)
from runner.master.api.openai_bodies import OpenAIBody
from runner.sampling_parameters import SamplingParameters, parse_logit_bias

SAMPLING_FIELDS = tuple(ENGINE_BOUNDS)


class GenerationDefaults:
    """Request, then /set_config, then the model's generation_config.json, then off.

    What /set_config set lives in memory only and is lost with the process.
    """

    def __init__(self, model_defaults: Mapping[str, Any] | None = None) -> None:
        self._model = dict(model_defaults or {})
        self._set: dict[str, Any] = {}

    def follow(self, model_defaults: Mapping[str, Any]) -> None:
        """Another model is served."""
        self._model = dict(model_defaults)

    def update(self, document: Mapping[str, Any]) -> None:
        """Take what `document` names, nothing when any of it is wrong; raises InvalidField."""
        body = parse_body(ConfigurationBody, document)
        given = body.model_dump(exclude_none=True)
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

    def in_force(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: value for name, value in self.current().items() if value is not None}

    def sampling(self, body: SamplingBody, eos_ids: tuple[int, ...]) -> SamplingParameters:
        """The request's sampling parameters; raises InvalidField."""
        given = body.given(*SAMPLING_FIELDS)
        # A nucleus of nothing is the one most probable token, as in the block protocol.
        one_token = isinstance(body, OpenAIBody) and given.get("top_p") == 0
        if one_token:
            given["top_p"] = 1.0
        arguments = _sampling_arguments({**self._model, **self._set, **given})
        if not self._samples(body):
            arguments["temperature"] = 0
        stop_ids = tuple(body.stop_token_ids or ())
        if not body.ignore_eos:
            stop_ids += eos_ids
        parameters = SamplingParameters(
            **arguments,
            stop_token_ids=stop_ids,
            logit_bias=parse_logit_bias(body.logit_bias or {}),
            logprobs=body.alternatives,
        )
        return replace(parameters, top_k=1) if one_token else parameters

    def _samples(self, body: SamplingBody) -> bool:
        """Whether the request samples: as asked, else when it names a filter or a temperature,
        else as /set_config says; else POST /generate does as the model says, and as transformers
        (no), and the others do."""
        otherwise = True
        if isinstance(body, GenerateBody):
            if body.do_sample is not None:
                return body.do_sample
            otherwise = bool(self._model.get("do_sample", False))
        if body.given(*MEANS_SAMPLING):
            return True
        return bool(self._set.get("do_sample", otherwise))

    def stop(self, stop: object) -> tuple[str, ...]:
        return stop_strings(self._set.get("stop") if stop is None else stop)

    def max_new_tokens(self, usual: int | None) -> int | None:
        """How many tokens to generate where the request does not say; None for all there is room
        for."""
        tokens: int | None = self._set.get("max_new_tokens", usual)
        return tokens


def _sampling_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {name: values[name] for name in SAMPLING_FIELDS if values.get(name) is not None}
    if arguments.get("top_k") == -1:  # vLLM's word for off
        arguments["top_k"] = 0
    seed = arguments.get("seed", 0)
    if seed == DRAW_A_SEED:
        del arguments["seed"]
    elif -SEED_LIMIT <= seed < 0:
        arguments["seed"] = seed % SEED_LIMIT
    return arguments
