"""Signatures of S3's requests, and where credentials come from."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from contract.bucket import BucketError, Credentials, find_credentials, locate_files, sign_url

VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The credentials file, which is not there yet."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path / "credentials"


def test_the_example_of_the_specification() -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html"""
    keys = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    now = datetime(2013, 5, 24, tzinfo=UTC)
    url = "https://examplebucket.s3.amazonaws.com/test.txt"
    signed = sign_url("GET", url, keys, "us-east-1", now)
    assert signed.endswith(
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


@pytest.mark.parametrize(
    ("address", "variables", "url"),
    [
        ("https://a.test/b/", {}, "https://a.test/b/config.json"),
        ("s3://one/a/b/", {}, "https://one.s3.us-east-1.amazonaws.com/a/b/config.json"),
        ("s3://one", {}, "https://one.s3.us-east-1.amazonaws.com/config.json"),
        (
            "s3://o.ne/a b",
            {"AWS_REGION": "eu-west-1"},
            "https://s3.eu-west-1.amazonaws.com/o.ne/a%20b/config.json",
        ),
        (
            "s3://one/a",
            {"AWS_ENDPOINT_URL": "http://store:9000/"},
            "http://store:9000/one/a/config.json",
        ),
    ],
)
def test_without_credentials_everybody_asks(
    address: str, variables: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert locate_files(address)("GET", "config.json") == url


def test_variables_come_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(
        "[default]\naws_access_key_id = mine\naws_secret_access_key = a%b\n"
        "[other]\naws_access_key_id = its\naws_secret_access_key = c\naws_session_token = t\n"
    )
    assert find_credentials() == Credentials("mine", "a%b")
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert find_credentials() == Credentials("its", "c", "t")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "given")
    with pytest.raises(BucketError, match="needs AWS_SECRET_ACCESS_KEY"):
        find_credentials()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "d")
    assert find_credentials() == Credentials("given", "d")
    query = parse_qs(urlsplit(locate_files("s3://one/a")("HEAD", "f")).query)
    assert query["X-Amz-Credential"][0].startswith("given/")


@pytest.mark.parametrize("text", ["", "a-secret", "[default]\naws_access_key_id = a-secret\n"])
def test_a_file_that_says_too_little_is_told_without_its_content(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(BucketError, match=r"has no aws_access_key_id .* below \[default\]") as told:
        locate_files("s3://one/a")
    assert "a-secret" not in str(told.value)
