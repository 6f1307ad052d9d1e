"""Options that several commands have, and the stack files that they name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from infra.stack.faults import UserError
from infra.stack.file import StackFile, load_stack_file

STACKS = Path("stacks")
# Beside the package in a clone, and where a wheel puts its data.
_SHIPPED = (
    Path(__file__).resolve().parents[2] / "stacks",
    Path(sys.prefix) / "share" / "splitstack" / "stacks",
)
Stack = Annotated[
    str, typer.Option("--stack", "-s", help="Stack: stacks/Pulumi.<stack>.yaml, or a file.")
]
Running = Annotated[
    str,
    typer.Option(
        "--stack", "-s", help="Stack or deployment name; default: the one that runs here."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a key under splitstack:deployment."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def load(stack: str, sets: list[str] | None) -> StackFile:
    return load_stack_file(stack_path(stack), sets or ())


def stack_path(stack: str) -> Path:
    """In this folder; else of those that come with the package, which one machine needs no clone
    for. Raises UserError."""
    if stack.endswith((".yaml", ".yml")) or "/" in stack:
        return Path(stack)
    folders = [STACKS, *_SHIPPED]
    for folder in folders:
        path = folder / f"Pulumi.{stack}.yaml"
        if path.is_file():
            return path
    found = {path for folder in folders for path in folder.glob("Pulumi.*.yaml")}
    known = sorted({path.stem.removeprefix("Pulumi.") for path in found})
    there = f"there are: {', '.join(known)}" if known else f"there are none in {STACKS.resolve()}"
    raise UserError(f"--stack {stack}: no file {STACKS / f'Pulumi.{stack}.yaml'}; {there}")


def cluster_stack(stack: str) -> StackFile | None:
    """The file of a stack that is in clusters; None for one that is not, or has no file."""
    try:
        stack_file = load(stack, None)
    except UserError:
        return None
    return stack_file if stack_file.deployment.clusters else None
