"""YAML as Pulumi reads it, and as people wrote it."""

from __future__ import annotations

import pytest
import yaml
from ruamel.yaml.error import MarkedYAMLError, YAMLError

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
        ("1e3", 1000),
        ("1.0", 1),
        ("1.50", 1.5),
        ("1e21", 1e21),
        ("1:30", "1:30"),
        ("0-7", "0-7"),
        ("~", None),
        ("!!str 5", "5"),
        ("=", "="),
        ("&anchor true", True),
    ],
)
def test_values_mean_what_they_mean_to_pulumi(written: str, value: object) -> None:
    found = read_yaml(f"key: {written}")["key"]
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)
    assert str(found) == str(value)


@pytest.mark.parametrize("text", ["yes", "0", "010", "1e3", "0-7", "true", "null", "#", ""])
def test_text_stays_text(text: str) -> None:
    assert read_yaml(yaml_text({"key": text}))["key"] == text


def test_comments_quotes_and_order_stay() -> None:
    text = "# first\nb: 'x' # why\na:\n  - \"0\"\n  # last\n  - c: |\n      two\n      lines\n"
    assert yaml_text(read_yaml(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "a: 010\nb: 1e3\nc: 1.0\nd: 0x1F\n",
        f"long: {'word ' * 100}word\n",
        "a:\n- 1\n- b:\n  - 2\n",
        "a:\n    b:\n        - 1\n    c: {d: 1}\n",
        "a: [{b: 1}]\n",
        "size: 500m\nswitch: yes\n",
    ],
)
def test_what_a_person_wrote_stays(text: str) -> None:
    assert yaml_text(read_yaml(text)) == text


@pytest.mark.parametrize("text", ["1:30", "off", "yes", "0,1", "500m", "y", "=", "0-7"])
def test_new_text_is_text_to_every_reader(text: str) -> None:
    written = yaml_text({"key": text, text: 1})
    assert yaml.safe_load(written) == {"key": text, text: 1}
    assert "key: '" in written or 'key: "' in written


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &x 1\nb: &x secret", "found a duplicate anchor"),
        ("a: 1\nb: *secret", "found an undefined alias"),
        ("a: 1\nb: &x [*x]", "found an alias of itself"),
        ("a: 1\nb: &x {c: *x}", "found an alias of itself"),
        ("a: 1\n<<: {b: secret}", "found a merge key (<<); write the keys out"),
        ("a: 1\n? [secret]\n: 2", "found unhashable key"),
        ("a: 1\nb: !foo {c: secret}", "could not determine a constructor for the tag '!foo'"),
        ("a: 1\nb: !foo secret", "could not determine a constructor for the tag '!foo'"),
        (
            "a: 1\nb: !!omap [c: secret]",
            "could not determine a constructor for the tag 'tag:yaml.org,2002:omap'",
        ),
        (
            "a: 1\nb: !!int {c: secret}",
            "could not determine a constructor for the tag 'tag:yaml.org,2002:int'",
        ),
        ("a: 1\nb: !!int secret", "found no int"),
        ("a: 1\nb: !!timestamp secret", "found no timestamp"),
        ("a: 1\nb: 2024-99-99", "found no timestamp"),
        (f"a: 1\nb: {'9' * 5000}", "found no int"),
    ],
)
def test_what_no_stack_file_needs_is_refused_with_its_line(
    text: str, told: str, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(MarkedYAMLError) as raised:
        read_yaml(text)
    assert raised.value.problem == told
    assert raised.value.problem_mark.line == 1
    assert not recwarn


@pytest.mark.parametrize("text", ["[" * 300, "[" * 100_000, '"\\U00110000"', "\x00"])
def test_what_the_reader_cannot_read_is_not_yaml(text: str) -> None:
    with pytest.raises(YAMLError):
        read_yaml(text)
