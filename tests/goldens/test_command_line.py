"""The `splitstack` command: its commands, options, defaults and exit codes. Scripts use them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from infra.cli import app as cli
from tests.goldens.recorded_file import check_recorded

REPOSITORY = Path(__file__).parents[2]
LOCAL = str(REPOSITORY / "stacks" / "Pulumi.local.yaml")


def test_commands_options_and_defaults() -> None:
    group: Any = typer.main.get_command(cli.app)
    commands = {"": group, **group.commands}
    check_recorded("command-line", {name: facts(item) for name, item in commands.items()})


def facts(command: Any) -> list[dict[str, Any]]:
    """The parameters by name; arguments in their order, before the options."""
    parameters = [parameter(item) for item in command.params]
    arguments = [item for item in parameters if item["kind"] == "argument"]
    options = sorted((item for item in parameters if item not in arguments), key=names)
    return [*arguments, *options]


def names(found: dict[str, Any]) -> list[str]:
    return list(found["names"])


def parameter(item: Any) -> dict[str, Any]:
    return {
        "kind": item.param_type_name,
        "names": sorted([*item.opts, *item.secondary_opts]),
        "default": item.default,
        "required": item.required,
        "repeated": bool(item.multiple or item.nargs == -1),
        "flag": bool(getattr(item, "is_flag", False)),
        "variable": item.envvar,
        "least": getattr(item, "min", None),
        "most": getattr(item, "max", None),
    }


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder without stacks, in which nothing runs."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_elsewhere")
def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = [
        (),
        ("--help",),
        ("--version",),
        ("plan", "--help"),
        ("no-such-command",),
        ("plan",),
        ("plan", "-s", "nowhere"),
        ("plan", "-s", "<local>"),
        ("plan", "-s", "<local>", "--json"),
        ("plan", "-s", "<local>", "--set", "nnodes=0"),
        ("plan", "-s", "<local>", "--set", "nnodes"),
        ("plan", "-s", "<local>", "--no-such-option"),
        ("status", "-s", "local"),
        ("down", "-s", "local"),
        ("logs", "-s", "local"),
        ("chat",),
        ("chat", "-s", "local"),
        ("chat", "--url", "http://x", "--max-tokens", "0"),
        ("doctor", "-s", "<local>"),
        ("import-split", "no-such-file.json"),
        ("import-block", "no-such-file.json", "-s", "<local>"),
        ("api-key", "me"),
        ("api-key", "me", "--max-concurrent", "0"),
    ]
    found = {}
    for call in calls:
        arguments = [LOCAL if item == "<local>" else item for item in call]
        monkeypatch.setattr(sys, "argv", ["splitstack", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found[" ".join(("splitstack", *call))] = ended.value.code
    check_recorded("exit-codes", found)
