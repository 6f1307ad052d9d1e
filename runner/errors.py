"""The runner's one exception tree."""

from __future__ import annotations

from contract.faults import shown_value


class RunnerError(Exception):
    """Anything that the runner raises on purpose."""


class InvalidField(RunnerError):
    """User input that breaks a rule; becomes HTTP 400 and names the field, the value, the rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        self.field, self.value, self.rule = field, value, rule
        super().__init__(f"{field} = {shown_value(value)}: {rule}")


class PromptTooLong(InvalidField):
    """The prompt and what it asks for exceed max_model_len or the KV budget."""


class EngineFull(RunnerError):
    """The queue is full; becomes HTTP 429 with Retry-After."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotServing(RunnerError):
    """Starting, forming, draining or failed; becomes HTTP 503 and says which."""


class DeadlineExceeded(RunnerError):
    """The request's deadline passed before its last token; becomes HTTP 504."""


class ModelUnavailable(RunnerError):
    """The model's files cannot be had: no such folder, no network, wrong digest."""


class UnsupportedModel(RunnerError):
    """The model cannot be split; the message says what in it cannot."""


class ProtocolError(RunnerError):
    """A frame or a handshake that breaks the protocol; ends that connection, nothing else."""
