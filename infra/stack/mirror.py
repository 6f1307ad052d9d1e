"""Every image that a stack needs from a registry: what an air-gapped site has to mirror."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

from infra.stack.config import DeploymentConfig
from infra.stack.faults import UserError
from infra.stack.image_names import image_names

_REPOSITORY = Path(__file__).resolve().parents[2]
_ARGUMENT = re.compile(r"ARG (\w+)=(\S*)")
_FROM = re.compile(r"FROM (\S+)(?: AS (\S+))?", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class MirroredImage:
    """`pods` run an image, or a `build` begins with it: then `build_arguments` are those that name
    another one. `tiers` are what needs it."""

    name: str
    use: Literal["pods", "build"]
    tiers: tuple[str, ...]
    build_arguments: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """ "" where a tag decides, which may be another image tomorrow."""
        return self.name.partition("@")[2]


def mirrored_images(deployment: DeploymentConfig) -> list[MirroredImage]:
    """Each once, those of pods first. Raises UserError where a Dockerfile is missing."""
    names = image_names(deployment)
    found = [MirroredImage(name, "pods", (tier,)) for tier, name in names.items() if name]
    store = deployment.session_store
    if deployment.proxy_blocks and store.mode == "valkey":
        found.append(MirroredImage(store.image, "pods", ("session_store",)))
    if deployment.images.builder == "docker":
        given = deployment.images.build_arguments
        found += [
            MirroredImage(name, "build", (tier,), arguments)
            for tier in names
            for name, arguments in _bases(_REPOSITORY / tier / "Dockerfile", given)
        ]
    return _merged(found)


def _bases(dockerfile: Path, given: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What a Dockerfile's stages begin with but for its own, and the arguments in the name."""
    if not dockerfile.is_file():
        raise UserError(f"{dockerfile} is no file: images.builder docker builds in a clone")
    arguments: dict[str, str] = {}
    stages: set[str] = set()
    for line in dockerfile.read_text("utf-8").splitlines():
        if found := _ARGUMENT.match(line):
            # Those behind the first FROM belong to a stage, and name no image.
            if not stages:
                arguments[found[1]] = given.get(found[1], found[2])
        elif found := _FROM.match(line):
            if found[1] not in stages:
                names = tuple(_VARIABLE.findall(found[1]))
                yield Template(found[1]).substitute(arguments), names
            stages.add(found[2] or "")


def _merged(images: list[MirroredImage]) -> list[MirroredImage]:
    merged: dict[tuple[str, str], MirroredImage] = {}
    for image in images:
        before = merged.get((image.name, image.use))
        tiers = dict.fromkeys([*(before.tiers if before else ()), *image.tiers])
        merged[image.name, image.use] = MirroredImage(
            image.name, image.use, tuple(tiers), image.build_arguments
        )
    return list(merged.values())
