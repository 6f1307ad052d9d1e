"""The Pulumi program run without an engine: what it would ask the engine for, kept."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pulumi.runtime import Settings, run_in_stack
from pulumi.runtime.proto import resource_pb2

_PROJECT = "splitstack"
_STACK = "pulumi:pulumi:Stack"


@dataclass(frozen=True)
class Registration:
    """One resource; `request` has its type, name, inputs and options."""

    urn: str
    request: resource_pb2.RegisterResourceRequest

    @property
    def kind(self) -> str:
        """Its Pulumi type, as in "kubernetes:core/v1:Pod"."""
        return self.request.type

    @property
    def is_object(self) -> bool:
        """Whether it is a Kubernetes object."""
        return self.kind.startswith("kubernetes:")

    @property
    def cluster(self) -> str:
        """The name of its provider."""
        return self.request.provider.rpartition("::")[0].rpartition("::")[2]


@dataclass
class Recorder:
    """Answers as the engine's two services do. What a provider would add is unknown in a preview.

    `registrations` come in no certain order: the program does not wait for one before the next.
    """

    stack: str = "recorded"
    preview: bool = True
    registrations: list[Registration] = field(default_factory=list)
    outputs: list[resource_pb2.RegisterResourceOutputsRequest] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def run(self, program: Callable[[], None]) -> None:
        """Runs the program to its end and raises what it raises.

        In a context of its own: Pulumi's settings, configuration and root resource are context
        variables, and nothing of this run is there afterwards. Not within a running event loop.
        """

        async def run_as_the_engine_would() -> None:
            Settings(_PROJECT, self.stack, monitor=self, engine=self, dry_run=self.preview)
            await run_in_stack(program)

        try:
            contextvars.Context().run(asyncio.run, run_as_the_engine_would())
        finally:
            # What was set where nothing was set before is what every new context begins with.
            contextvars.Context().run(Settings, project=None, stack=None)

    # The names are those of the protocol: https://github.com/pulumi/pulumi/tree/master/proto

    def RegisterResource(  # noqa: N802
        self, request: resource_pb2.RegisterResourceRequest
    ) -> resource_pb2.RegisterResourceResponse:
        parents = request.parent.split("::")[2].split("$") if request.parent else []
        # The engine leaves the stack itself out of the parents.
        parents = parents if len(parents) < 2 else [it for it in parents if it != _STACK]
        kind = "$".join([*parents, request.type])
        urn = f"urn:pulumi:{self.stack}::{_PROJECT}::{kind}::{request.name}"
        self.registrations.append(Registration(urn, request))
        return resource_pb2.RegisterResourceResponse(
            urn=urn, id=f"{request.name}-id", object=request.object
        )

    def RegisterResourceOutputs(  # noqa: N802
        self, request: resource_pb2.RegisterResourceOutputsRequest
    ) -> None:
        self.outputs.append(request)

    def SupportsFeature(  # noqa: N802
        self, request: resource_pb2.SupportsFeatureRequest
    ) -> resource_pb2.SupportsFeatureResponse:
        return resource_pb2.SupportsFeatureResponse(hasSupport=request.id != "outputValues")

    def SignalAndWaitForShutdown(self, request: object) -> None:  # noqa: N802
        """At once: nothing is done after the program."""

    def Log(self, request: Any) -> None:  # noqa: N802
        self.messages.append(request.message)
