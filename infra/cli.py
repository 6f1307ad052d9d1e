"""The `splitstack` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.faults import StackConfigError
from infra.import_split import import_split
from infra.local_error import LocalStackError
from infra.local_stack import run_stack, start_detached, stop_stack
from infra.local_state import find_folder, find_state
from infra.local_status import read_status, render_status
from infra.log_reader import log_lines
from infra.plan_report import plan_to_json, render_plan
from infra.progress import Progress
from infra.stack_file import StackFile, load_stack_file
from infra.stack_plan import plan_stack

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
STACKS = Path("stacks")

app = typer.Typer(
    help="Serve a language model that fits no single GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Stack = Annotated[
    str, typer.Option("--stack", "-s", help="Stack: stacks/Pulumi.<stack>.yaml, or a file.")
]
Running = Annotated[str, typer.Option("--stack", "-s", help="Stack or deployment name.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a key under splitstack:deployment."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def up(
    stack: Stack,
    sets: Sets = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running.")] = False,
) -> None:
    """Run a stack on this machine until Ctrl-C."""
    stack_file = _load(stack, sets)
    raise typer.Exit(start_detached(stack_file, sets or []) if detach else run_stack(stack_file))


@app.command()
def down(
    stack: Running,
    now: Annotated[bool, typer.Option("--now", help="Drop the requests that run.")] = False,
) -> None:
    """End a stack that runs on this machine."""
    folder, state = find_state(stack)
    stop_stack(folder, state, now=now, progress=Progress())


@app.command()
def status(stack: Running, as_json: Json = False) -> None:
    """Show the processes of a running stack; exit code 1 unless it is ready."""
    _, state = find_state(stack)
    found = read_status(state)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else render_status(found))
    raise typer.Exit(0 if found.phase == "ready" else 1)


@app.command()
def logs(
    stack: Running,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[PROCESS]...", help="As status names them.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on.")] = False,
) -> None:
    """Print the logs of a stack's processes."""
    folder = find_folder(stack)
    files = folder.logs()
    known = {path.stem: path for path in files}
    for name in names or []:
        if name not in known:
            raise LocalStackError(f"no process {name!r} here; there are: {', '.join(known)}")
    for line in log_lines([known[name] for name in names] if names else files, follow=follow):
        typer.echo(line)


@app.command()
def plan(stack: Stack, sets: Sets = None, as_json: Json = False) -> None:
    """Show which layers each rank would hold, and the memory that they take."""
    found = plan_stack(_load(stack, sets).deployment)
    typer.echo(json.dumps(plan_to_json(found), indent=2) if as_json else render_plan(found))


@app.command("import-split")
def import_split_command(
    file: Annotated[str, typer.Argument(help="JSON file; - reads standard input.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Turn an AIOS splits/create request into a stack file."""
    imported = import_split(_read_json(file))
    for warning in imported.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if output is None:
        typer.echo(imported.text, nl=False)
    else:
        output.write_text(imported.text, "utf-8")


def _load(stack: str, sets: list[str] | None) -> StackFile:
    is_file = stack.endswith((".yaml", ".yml")) or "/" in stack
    path = Path(stack) if is_file else STACKS / f"Pulumi.{stack}.yaml"
    if not is_file and not path.is_file():
        known = sorted(item.stem.removeprefix("Pulumi.") for item in STACKS.glob("Pulumi.*.yaml"))
        there = (
            f"there are: {', '.join(known)}" if known else f"there are none in {STACKS.resolve()}"
        )
        raise LocalStackError(f"--stack {stack}: no file {path}; {there}")
    return load_stack_file(path, sets or ())


def _read_json(file: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if file == "-" else Path(file).read_text("utf-8"))
    except OSError as error:
        raise LocalStackError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LocalStackError(f"{file}: is not JSON: {error}") from error


def main() -> None:
    """User errors are one paragraph and exit code 2."""
    sys.exit(_run(app))


def _run(command: Callable[[], Any]) -> int:
    try:
        command()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    except (LocalStackError, StackConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # `splitstack logs | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    main()
