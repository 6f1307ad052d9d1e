"""A stack as one resource of somebody's own Pulumi program, in any of Pulumi's languages.

Pulumi's analyzer makes the package's schema of the annotations and docstrings below, as they are
at run time: no annotation may be a string here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pulumi
from pulumi.provider.experimental.util import camel_case
from pulumi.runtime.sync_await import _sync_await

from infra.__main__ import deploy
from infra.cluster.live import COMPONENT
from infra.cluster.objects import Place
from infra.cluster.stack import make_stack
from infra.cluster.stack_inputs import StackInputs
from infra.stack.faults import StackConfigError
from infra.stack.file import lock_name


class SplitStackArgs(TypedDict):
    """What a stack is made of."""

    deployment: pulumi.Input[dict[str, pulumi.Input[Any]]]
    """The value of splitstack:deployment in a stack file, with the same keys."""
    secrets: pulumi.Input[dict[str, pulumi.Input[str]]]
    """group_token; if used hub_token, s3_credentials, api_keys, session_store_password."""
    kubeconfigs: NotRequired[pulumi.Input[dict[str, pulumi.Input[Any]]]]
    """Text or object by the names in deployment.clusters; else the files named there."""


class SplitStack(pulumi.ComponentResource):
    """A language model served in a cluster by several processes, each with some of its layers."""

    images: pulumi.Output[dict[str, str]]
    """The images that run, by digest."""
    ranks: pulumi.Output[list[dict[str, Any]]]
    """Node, devices and layers of each rank."""
    urls: pulumi.Output[dict[str, Any]]
    """Of master and blocks in the cluster, and of the inference server as clients reach it."""
    curl: pulumi.Output[str | None]
    """A line to try the inference server with, where the stack has one."""
    port_forward: pulumi.Output[str | None]
    """The line that makes the inference server reachable, where nothing else does."""
    spec_hash: pulumi.Output[str]
    """Of what is served."""
    management_key: pulumi.Output[str]
    """What callers of verbs that change something prove; a secret."""
    applied: pulumi.Output[str]
    """What is in force, for the next update; a secret."""

    def __init__(
        self, name: str, args: SplitStackArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        try:
            # Whatever is wrong is told before there is anything.
            stack = make_stack(_inputs(name, args), Place(name))
        except _NotKnownError:
            stack = None
        except StackConfigError as error:
            # Pulumi prints the frames of what a component raises, and these tell a user nothing.
            raise error.with_traceback(None) from None
        super().__init__(COMPONENT, name, None, opts)
        if stack is not None:
            found = deploy(stack, Place(name, self))
        else:
            pulumi.log.info("nothing of it is shown before deployment and secrets are known", self)
            later = pulumi.Output.all(args["deployment"], args["secrets"]).apply(lambda _: None)
            found = dict.fromkeys(_OUTPUTS, later)
        for key in _OUTPUTS:
            setattr(self, key, pulumi.Output.from_input(found.get(key)))
        self.register_outputs({camel_case(key): getattr(self, key) for key in _OUTPUTS})


_OUTPUTS = tuple(SplitStack.__annotations__)


class _NotKnownError(Exception):
    """A value comes with a resource that is still to be made: in a preview only."""


def _inputs(name: str, args: SplitStackArgs) -> StackInputs:
    """Raises _NotKnownError for all but kubeconfigs, which are not needed to tell what there will
    be."""
    deployment = _whole_numbers(_plain(args["deployment"]))
    kubeconfigs, later = _kubeconfigs(args.get("kubeconfigs"), deployment)
    return StackInputs(
        source=f"SplitStack {name}",
        deployment=deployment,
        secrets={key: str(value) for key, value in _plain(args["secrets"]).items() if value},
        secrets_key="secrets.",
        lock=Path(lock_name(name)),
        folder=Path.cwd(),
        kubeconfigs=kubeconfigs,
        later=later,
    )


def _kubeconfigs(
    given: Any, deployment: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, pulumi.Output[str]]]:
    """By cluster: those that are known, and those that are not."""
    if not isinstance(given, Mapping):
        try:
            given = _plain(given) or {}
        except _NotKnownError:
            # Nor are its keys.
            whole = pulumi.Output.from_input(given)
            return {}, {name: whole.apply(lambda _: "") for name in deployment.get("clusters", ())}
    known: dict[str, Any] = {}
    later: dict[str, pulumi.Output[str]] = {}
    for name, value in given.items():
        try:
            known[name] = _plain(value)
        except _NotKnownError:
            later[name] = pulumi.Output.from_input(value).apply(lambda _: "")
    return known, later


def _plain(value: Any) -> Any:
    """What it is now, of a secret too: a check inside an Output would come after the first object.

    Raises _NotKnownError.
    """
    output = pulumi.Output.from_input(value)

    async def read() -> Any:
        if not await output.is_known():
            raise _NotKnownError
        return await output.future()

    return _sync_await(read())


def _whole_numbers(value: Any) -> Any:
    """Between processes every number is a float."""
    if isinstance(value, Mapping):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
