"""`splitstack images`: what a site without the internet has to mirror."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from infra.cli.options import Json, Sets, Stack, load
from infra.plan.table import table_lines
from infra.stack.mirror import mirrored_images

_USES = {"pods": "run by {}", "build": "base of {}"}


def images_command(
    stack: Stack,
    sets: Sets = None,
    names_only: Annotated[bool, typer.Option("--list", help="Names alone, one a line.")] = False,
    as_json: Json = False,
) -> None:
    """List every image that a stack needs from a registry: what an air-gapped site mirrors."""
    found = mirrored_images(load(stack, sets).deployment)
    if as_json:
        items = [asdict(image) | {"digest": image.digest} for image in found]
        typer.echo(json.dumps(items, indent=2))
        return
    if names_only:
        # What is both run and begun with is pulled once.
        lines = list(dict.fromkeys(image.name for image in found))
    else:
        rows = [("image", "what for")]
        rows += [(it.name, _USES[it.use].format(", ".join(it.tiers))) for it in found]
        lines = table_lines(rows)
    typer.echo("\n".join(lines))
