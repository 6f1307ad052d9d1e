"""`splitstack import-split` and `import-block`: what an AIOS user has, as a stack file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.aios.import_block import import_block
from infra.aios.import_split import import_split
from infra.cli.options import Stack, stack_path
from infra.stack.faults import UserError
from infra.stack.file import read_stack_document


def import_split_command(
    file: Annotated[str, typer.Argument(help="JSON file; - reads standard input.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Turn an AIOS splits/create request into a stack file."""
    imported = import_split(_read_json(file))
    _put_out(imported.text, imported.warnings, output)


def import_block_command(
    file: Annotated[str, typer.Argument(help="An AIOS block.json; - reads standard input.")],
    stack: Stack,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Merge an AIOS block into a stack file."""
    imported = import_block(_read_json(file), read_stack_document(stack_path(stack)))
    _put_out(imported.text, imported.warnings, output)


def _put_out(text: str, warnings: Sequence[str], output: Path | None) -> None:
    """An imported stack file to `output` or standard output, the warnings beside it."""
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, "utf-8")


def _read_json(file: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if file == "-" else Path(file).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file}: is not JSON: {error}") from error
