"""generation_config of the block protocol, as parameters of OpenAI's API."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from service.fields import Fields

StopString = Annotated[str, Field(min_length=1, max_length=512)]


class GenerationConfig(Fields):
    """A field left out takes the block's default, then the model's; bounds as AIOS documents them.

    temperature goes to 2, as in OpenAI's API; AIOS documents 1.
    """

    max_new_tokens: Annotated[int, Field(ge=1, le=36000)] | None = None
    do_sample: bool | None = None
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[list[StopString], Field(max_length=16)] | None = None

    def over(self, defaults: GenerationConfig) -> GenerationConfig:
        """This config with `defaults` where it says nothing."""
        return GenerationConfig(**(defaults.given() | self.given()))

    def given(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)

    def parameters(self) -> dict[str, Any]:
        """The fields of an OpenAI request. do_sample false is greedy: temperature 0 alone."""
        parameters = self.given()
        if "max_new_tokens" in parameters:
            parameters["max_tokens"] = parameters.pop("max_new_tokens")
        if parameters.pop("do_sample", True) is False:
            for name in ("top_k", "top_p", "min_p"):
                parameters.pop(name, None)
            parameters["temperature"] = 0
        return parameters
