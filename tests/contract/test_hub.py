"""What the hub's refusals mean, in words."""

from __future__ import annotations

import pytest

from contract.hub import hub_endpoint, is_transient, read_refusal


def sentence(status: int, *, token: bool, **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_refusal(status, named, "org/it", with_token=token).reason


def test_each_cause_has_a_sentence_of_its_own() -> None:
    said = {
        sentence(401, token=False),
        sentence(401, token=True),
        sentence(401, token=False, X_Error_Code="GatedRepo"),
        sentence(403, token=True, X_Error_Code="GatedRepo"),
        sentence(403, token=True),
        sentence(404, token=False),
        sentence(404, token=True),
        sentence(404, token=True, X_Error_Code="RevisionNotFound"),
        sentence(503, token=True),
        sentence(451, token=True),
    }
    assert len(said) == 10


def test_a_token_that_the_hub_does_not_know_is_not_the_models_fault() -> None:
    bad = "Invalid credentials in Authorization header"
    assert "refuses the token" in sentence(401, token=True, X_Error_Message=bad)
    assert read_refusal(
        404, {"X-Error-Code": "RevisionNotFound"}, "org/it", with_token=False
    ).key == ("model_revision")


@pytest.mark.parametrize(("status", "later"), [(429, True), (500, True), (503, True), (404, False)])
def test_what_may_be_answered_later(status: int, later: bool) -> None:
    assert is_transient(status) is later


def test_an_endpoint_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example/")
    assert hub_endpoint() == "http://mirror.example"
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert hub_endpoint() == "https://huggingface.co"
