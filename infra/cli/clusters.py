"""Commands that ask the clusters of a stack.

The client of Kubernetes takes half a second to import, and most commands do not need it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from infra.cli.options import Json, Sets, Stack, load
from infra.local.status_view import fit_text, show_live, terminal_width
from infra.plan.lock import model_reader
from infra.stack.faults import StackConfigError, UserError
from infra.stack.file import StackFile, require_clusters


def doctor(stack: Stack, sets: Sets = None, as_json: Json = False) -> None:
    """Check clusters, nodes, rights and names before `pulumi up`; exit code 1 on faults."""
    from infra.inspection.doctor import examine

    stack_file = load(stack, sets)
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


def repair(
    stack: Stack,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
) -> None:
    """Take away pods that have failed, are left over or are on a node that is gone; asks first."""
    from infra.inspection.client import ClusterError
    from infra.inspection.repair import find_repairs

    stack_file = load(stack, None)
    require_clusters(stack_file.deployment, str(stack_file.path))
    try:
        repairs = find_repairs(stack_file.deployment)
        for item in repairs:
            typer.echo(str(item))
        if not repairs:
            typer.echo("nothing to repair")
        elif yes or typer.confirm("do it?"):
            for item in repairs:
                item.do()
            typer.echo("done; `pulumi up --refresh` brings back ranks that are bare pods")
    except ClusterError as error:
        raise UserError(str(error)) from error


def show_cluster_status(stack_file: StackFile, as_json: bool, watch: bool) -> int:
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


def follow_cluster_logs(stack_file: StackFile, names: list[str], follow: bool) -> None:
    """Prints lines of pods until they end, or Ctrl-C."""
    from infra.inspection.client import ClusterError
    from infra.inspection.pod_logs import pod_log_lines

    try:
        for line in pod_log_lines(stack_file.deployment, names, follow=follow):
            typer.echo(line)
    except ClusterError as error:
        raise UserError(str(error)) from error
