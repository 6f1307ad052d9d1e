"""The `splitstack` command."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from contract.version import VERSION
from infra.cli.chat import open_chat, run_chat
from infra.cli.clusters import doctor, follow_cluster_logs, repair, show_cluster_status
from infra.cli.images import images_command
from infra.cli.imports import import_block_command, import_split_command
from infra.cli.options import Json, Running, Sets, Stack, cluster_stack, load
from infra.local.apply import apply_edit
from infra.local.fit import plan_before_up
from infra.local.log_reader import log_lines
from infra.local.progress import Progress
from infra.local.run import run_stack, start_detached, stop_stack
from infra.local.state import find_folder, find_state
from infra.local.status import read_status
from infra.local.status_view import render_status, terminal_width, watch_status
from infra.plan.lock import lock_model, model_reader
from infra.plan.report import plan_to_json, render_plan
from infra.stack.api_keys import make_api_key
from infra.stack.faults import StackConfigError, UserError
from infra.stack.file import (
    load_stack_file,
)

# What typer's parser raises; its own name for it depends on the version.
_UsageError: Any = typer.BadParameter.__mro__[1]
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Commands(TyperGroup):
    """Help that says each command's sentence whole, over several lines where it must."""

    def format_commands(self, _context: Any, formatter: Any) -> None:
        rows = [
            (name, command.get_short_help_str(limit=sys.maxsize))
            for name, command in self.commands.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"splitstack {VERSION}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def splitstack(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Serve a language model that fits no single GPU."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(EXIT_USAGE)


@app.command()
def up(
    stack: Stack,
    sets: Sets = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running.")] = False,
) -> None:
    """Run a stack on this machine until Ctrl-C."""
    stack_file = load(stack, sets)
    given = sets or []
    raise typer.Exit(start_detached(stack_file, given) if detach else run_stack(stack_file, given))


@app.command("apply")
def apply_command(stack: Running = "", sets: Sets = None) -> None:
    """Edit a stack that runs on this machine; exit code 1 where its model goes on as before."""
    folder, state = find_state(stack)
    # What `up` and edits were given before goes on to hold.
    all_sets = [*state.sets, *(sets or [])]
    stack_file = load_stack_file(Path(state.stack_file), all_sets)
    raise typer.Exit(apply_edit(stack_file, all_sets, folder, Progress()))


@app.command()
def down(
    stack: Running = "",
    now: Annotated[bool, typer.Option("--now", help="Drop the requests that run.")] = False,
) -> None:
    """End a stack that runs on this machine."""
    folder, state = find_state(stack)
    stop_stack(folder, state, now=now, progress=Progress())


@app.command()
def status(
    stack: Running = "",
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Live, with the pipeline.")] = False,
) -> None:
    """Show a stack's processes here, or its pods in its clusters; exit code 1 unless ready."""
    try:
        _, state = find_state(stack)
    except UserError:
        stack_file = cluster_stack(stack)
        if stack_file is None:
            raise
        raise typer.Exit(show_cluster_status(stack_file, as_json, watch)) from None
    if watch:
        watch_status(lambda: read_status(find_state(stack)[1]))
        raise typer.Exit
    found = read_status(state)
    text = (
        json.dumps(found.to_json(), indent=2) if as_json else render_status(found, terminal_width())
    )
    typer.echo(text)
    raise typer.Exit(0 if found.phase == "ready" else 1)


@app.command()
def logs(
    stack: Running = "",
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROCESS]...", help="As status names them; pods by a beginning."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on.")] = False,
) -> None:
    """Print the logs of a stack's processes here, or of its pods in its clusters."""
    try:
        folder = find_folder(stack)
    except UserError:
        if stack_file := cluster_stack(stack):
            follow_cluster_logs(stack_file, names or [], follow)
            return
        raise
    files = folder.logs()
    known = {path.stem: path for path in files}
    for name in names or []:
        if name not in known:
            raise UserError(f"no process {name!r} here; there are: {', '.join(known)}")
    for line in log_lines([known[name] for name in names] if names else files, follow=follow):
        typer.echo(line)


@app.command()
def chat(
    stack: Running = "",
    url: Annotated[str, typer.Option(help="An inference server elsewhere, instead of -s.")] = "",
    model: Annotated[str, typer.Option(help="Block to talk to; default: the first.")] = "",
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0: always the likeliest.")
    ] = None,
    key: Annotated[str, typer.Option(envvar="SPLITSTACK_API_KEY", help="API key.")] = "",
) -> None:
    """Talk to a running stack; Ctrl-C stops an answer."""
    if stack and url:
        raise UserError("--stack and --url: give either, of a stack that runs here or elsewhere")
    session = open_chat(url or find_state(stack)[1].front_url, key, model)
    given = {"max_completion_tokens": max_tokens, "temperature": temperature}
    session.system = system
    session.sampling = {name: value for name, value in given.items() if value is not None}
    raise typer.Exit(run_chat(session))


@app.command()
def plan(
    stack: Stack,
    sets: Sets = None,
    as_json: Json = False,
    lock: Annotated[
        bool, typer.Option("--lock", help="Write what the model is now to <stack>.lock.json.")
    ] = False,
) -> None:
    """Show which layers each rank would hold, the memory that they take, the requests that fit."""
    stack_file = load(stack, sets)
    path = stack_file.lock_path
    common = stack_file.deployment.common_params
    reader = lock_model(common, path) if lock else model_reader(path)
    found = plan_before_up(stack_file.deployment, reader)
    if lock and reader.lock is not None:
        path.write_text(reader.lock.text, "utf-8")
    typer.echo(json.dumps(plan_to_json(found), indent=2) if as_json else render_plan(found))


app.command()(doctor)
app.command()(repair)
app.command("images")(images_command)
app.command("import-split")(import_split_command)
app.command("import-block")(import_block_command)


@app.command("api-key")
def api_key_command(
    name: Annotated[str, typer.Argument(help="Whose key it is; logs say this name.")],
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at a time.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens.")] = None,
) -> None:
    """Make an API key: prints it on standard error, its entry for the list on standard output."""
    key, entry = make_api_key(name, max_concurrent, tokens_per_minute)
    typer.echo(f"{key}  (shown this once)", err=True)
    typer.echo(json.dumps(entry))


def main() -> None:
    """User errors are one paragraph and exit code 2, whoever finds them."""
    # Whatever a terminal, a pipe or a locale makes of a character, nothing ends for it.
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(_run(lambda: app(standalone_mode=False)))


def _run(command: Callable[[], Any]) -> int:
    try:
        code = command()
        return code if isinstance(code, int) else 0
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    except typer.Abort:  # Ctrl-C, or the end of what was asked for
        return EXIT_INTERRUPTED
    except _UsageError as error:
        said = error.format_message().rstrip(".")
        asked = error.ctx.command_path if error.ctx else "splitstack"
        print(f"error: {said[:1].lower()}{said[1:]}; see: {asked} --help", file=sys.stderr)
        return EXIT_USAGE
    except (UserError, StackConfigError) as error:
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
