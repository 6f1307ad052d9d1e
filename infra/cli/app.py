"""The `splitstack` command."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from contract.version import VERSION
from infra.aios.import_block import import_block
from infra.aios.import_split import import_split
from infra.cli.chat import open_chat, run_chat
from infra.local.apply import apply_edit
from infra.local.fit import plan_before_up
from infra.local.log_reader import log_lines
from infra.local.progress import Progress
from infra.local.run import run_stack, start_detached, stop_stack
from infra.local.state import find_folder, find_state
from infra.local.status import read_status
from infra.local.status_view import fit_text, render_status, show_live, terminal_width, watch_status
from infra.plan.lock import lock_model, model_reader
from infra.plan.report import plan_to_json, render_plan
from infra.stack.api_keys import make_api_key
from infra.stack.faults import StackConfigError, UserError
from infra.stack.file import (
    StackFile,
    load_stack_file,
    read_stack_document,
    require_clusters,
)

# What typer's parser raises; its own name for it depends on the version.
_UsageError: Any = typer.BadParameter.__mro__[1]
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
STACKS = Path("stacks")


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
    stack_file = _load(stack, sets)
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
        stack_file = _cluster_stack(stack)
        if stack_file is None:
            raise
        raise typer.Exit(_show_cluster_status(stack_file, as_json, watch)) from None
    if watch:
        watch_status(lambda: read_status(find_state(stack)[1]))
        raise typer.Exit
    found = read_status(state)
    text = (
        json.dumps(found.to_json(), indent=2) if as_json else render_status(found, terminal_width())
    )
    typer.echo(text)
    raise typer.Exit(0 if found.phase == "ready" else 1)


def _show_cluster_status(stack_file: StackFile, as_json: bool, watch: bool) -> int:
    # Imported here: the client takes half a second, and most commands do not need it.
    from infra.inspection.status import ClusterStatus, read_cluster_status, render_cluster_status

    def read() -> ClusterStatus:
        return read_cluster_status(stack_file.stack, stack_file.deployment)

    if watch:
        show_live(
            lambda width, height: fit_text(render_cluster_status(read(), width), width, height)
        )
        return 0
    found = read()
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        typer.echo(render_cluster_status(found, terminal_width()))
    return 0 if found.ready else 1


@app.command()
def logs(
    stack: Running = "",
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[PROCESS]...", help="As status names them.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on.")] = False,
) -> None:
    """Print the logs of a stack's processes."""
    try:
        folder = find_folder(stack)
    except UserError:
        if stack_file := _cluster_stack(stack):
            raise UserError(_cluster_logs_hint(stack_file)) from None
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
    stack_file = _load(stack, sets)
    path = stack_file.lock_path
    common = stack_file.deployment.common_params
    reader = lock_model(common, path) if lock else model_reader(path)
    found = plan_before_up(stack_file.deployment, reader)
    if lock and reader.lock is not None:
        path.write_text(reader.lock.text, "utf-8")
    typer.echo(json.dumps(plan_to_json(found), indent=2) if as_json else render_plan(found))


@app.command()
def doctor(stack: Stack, sets: Sets = None, as_json: Json = False) -> None:
    """Check clusters, nodes, rights and names before `pulumi up`; exit code 1 on faults."""
    from infra.inspection.doctor import examine

    stack_file = _load(stack, sets)
    try:
        require_clusters(stack_file.deployment, str(stack_file.path))
    except StackConfigError as error:
        if stack_file.deployment.clusters:
            raise
        raise UserError(
            f"{stack_file.path}: names no clusters. doctor checks the clusters that `pulumi up`"
            f" would use; on this machine the stack runs with: splitstack up -s {stack}\n{error}"
        ) from error
    findings = []
    for finding in examine(stack_file.deployment, model_reader(stack_file.lock_path)):
        findings.append(finding)
        if not as_json:
            typer.echo(str(finding))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    raise typer.Exit(1 if any(finding.level == "fault" for finding in findings) else 0)


@app.command("import-split")
def import_split_command(
    file: Annotated[str, typer.Argument(help="JSON file; - reads standard input.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Turn an AIOS splits/create request into a stack file."""
    imported = import_split(_read_json(file))
    _put_out(imported.text, imported.warnings, output)


@app.command("import-block")
def import_block_command(
    file: Annotated[str, typer.Argument(help="An AIOS block.json; - reads standard input.")],
    stack: Stack,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Merge an AIOS block into a stack file."""
    imported = import_block(_read_json(file), read_stack_document(_stack_path(stack)))
    _put_out(imported.text, imported.warnings, output)


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


def _load(stack: str, sets: list[str] | None) -> StackFile:
    return load_stack_file(_stack_path(stack), sets or ())


def _stack_path(stack: str) -> Path:
    is_file = stack.endswith((".yaml", ".yml")) or "/" in stack
    path = Path(stack) if is_file else STACKS / f"Pulumi.{stack}.yaml"
    if not is_file and not path.is_file():
        known = sorted(item.stem.removeprefix("Pulumi.") for item in STACKS.glob("Pulumi.*.yaml"))
        there = (
            f"there are: {', '.join(known)}" if known else f"there are none in {STACKS.resolve()}"
        )
        raise UserError(f"--stack {stack}: no file {path}; {there}")
    return path


def _cluster_logs_hint(stack_file: StackFile) -> str:
    """kubectl follows pods that come and go, better than a copy of it here would."""
    deployment = stack_file.deployment
    selector = f"app.kubernetes.io/instance={deployment.deployment_name}"
    return (
        f"stack {stack_file.stack} is in clusters; read its logs with: "
        f"kubectl logs -n {deployment.namespace} -l {selector} --all-containers --prefix "
        "-f --max-log-requests 100 "
        f"(blocks: -n {deployment.namespaces.blocks}, public API: "
        f"-n {deployment.namespaces.inference_server})"
    )


def _cluster_stack(stack: str) -> StackFile | None:
    """The file of a stack that is in clusters; None for one that is not, or has no file."""
    try:
        stack_file = _load(stack, None)
    except UserError:
        return None
    return stack_file if stack_file.deployment.clusters else None


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
