"""YAML as Pulumi reads it, and as people wrote it."""

from __future__ import annotations

import pytest

from infra.stack.document import read_yaml, yaml_text


# What `pulumi config get` says of each (Pulumi 3, gopkg.in/yaml.v3).
@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("n", "n"),
        ("True", True),
        ("010", 8),
        ("+010", 8),
        ("08", 8),
        ("0o10", 8),
        ("0b11", 3),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1e3", 1000.0),
        ("1:30", "1:30"),
        ("0-7", "0-7"),
        ("~", None),
        ("!!str 5", "5"),
    ],
)
def test_values_mean_what_they_mean_to_pulumi(written: str, value: object) -> None:
    found = read_yaml(f"key: {written}")["key"]
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize("text", ["yes", "0", "010", "1e3", "0-7", "true", "null", "#", ""])
def test_text_stays_text(text: str) -> None:
    assert read_yaml(yaml_text({"key": text}))["key"] == text


def test_comments_quotes_and_order_stay() -> None:
    text = "# first\nb: 'x' # why\na:\n  - \"0\"\n  # last\n  - c: |\n      two\n      lines\n"
    assert yaml_text(read_yaml(text)) == text
