"""SplitStack in somebody's own program declares what our own program does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.output import Unknown
from pulumi.provider.experimental.component import ComponentProvider

from infra.component.split_stack import SplitStack
from infra.stack.faults import StackConfigError
from tests.infra.program_stacks import FULL, NAMES, SECRETS, matrix, stack
from tests.infra.recorded_program import (
    TOKEN,
    Program,
    Recorded,
    edit_told,
    record,
    run_program,
    write_kubeconfig,
)

ALL_SECRETS = {"group_token": TOKEN, **SECRETS}
TYPE = "splitstack:index:SplitStack"
# Whose names do not begin with the deployment's.
PREFIXED = ("kubernetes", "Namespace", "Stash")


def component(
    deployment: Mapping[str, Any],
    secrets: Mapping[str, Any] = ALL_SECRETS,
    name: str = "chat",
    **arguments: Any,
) -> SplitStack:
    """Arguments that are Outputs come as functions: there are none outside of a program."""
    if not callable(secrets):
        arguments["secrets"] = pulumi.Output.secret(secrets)
    given: Any = {"deployment": deployment, "secrets": secrets} | arguments
    return SplitStack(name, made(given))


def declare(*arguments: Any, **named: Any) -> None:
    component(*arguments, **named)


def recorded(deployment: Mapping[str, Any], preview: bool = False, **arguments: Any) -> Program:
    return record(lambda: declare(deployment, **arguments), preview=preview)


def made(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: made(item) for key, item in value.items()}
    return value() if callable(value) else value


def unknown() -> pulumi.Output[Any]:
    return pulumi.Output.from_input(Unknown())


def own_name(item: Recorded) -> str:
    last = item.kind.rpartition(":")[2]
    return item.name.removeprefix("chat-") if last in PREFIXED else item.name


def parents(item: Recorded) -> list[str]:
    kinds = item.urn.split("::")[2].split("$")
    return [kind for kind in kinds if kind not in (TYPE, "pulumi:pulumi:Stack")]


def declared(program: Program) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """The properties of all but the component, by what our own program's have alike."""
    return {
        (*parents(item), own_name(item)): item.properties
        for item in program.resources
        if item.kind != TYPE
    }


@pytest.mark.parametrize("name", NAMES)
def test_it_declares_what_our_own_program_declares(tmp_path, name):
    mapping = matrix(tmp_path)[name]
    ours = run_program(mapping, secrets=ALL_SECRETS)
    theirs = recorded(mapping)
    assert declared(theirs) == declared(ours)
    # Without a default provider of the program's: each object goes to its own cluster.
    assert {item.provider == "" for item in theirs.objects} == {False}
    [whole] = [item for item in theirs.resources if item.kind == TYPE]
    tops = [item for item in theirs.resources if item.kind != TYPE and not item.parent]
    assert tops == []
    assert whole.name == "chat"


def test_it_puts_out_what_our_own_program_does(tmp_path):
    mapping = stack(tmp_path, **FULL)
    told: dict[str, Any] = {}

    def program() -> None:
        made = component(mapping)
        for key in ("ranks", "urls", "curl", "spec_hash", "management_key"):
            getattr(made, key).apply(lambda value, key=key: told.update({key: value}))

    record(program)
    ours = run_program(mapping, secrets=ALL_SECRETS).outputs
    # Between processes a value that is None is as good as none.
    told["ranks"] = [
        {key: value for key, value in rank.items() if value is not None} for rank in told["ranks"]
    ]
    assert told == {key: ours[key] for key in told}
    assert len(told) == 5


def test_several_of_them_in_one_program(tmp_path):
    second = stack(
        tmp_path,
        deployment_name="second",
        namespaces={"create": False},
        inference_server={"enabled": False},
        proxy_blocks=[{"block_id": "other"}],
    )

    def program() -> None:
        component(stack(tmp_path))
        component(second, name="chat-two")

    found = record(program)
    assert len({item.urn for item in found.resources}) == len(found.resources)
    assert sum(item.kind == TYPE for item in found.resources) == 2


def test_numbers_arrive_as_floats(tmp_path):
    floats = json.loads(json.dumps(stack(tmp_path, **FULL)), parse_int=float)
    assert declared(recorded(floats)) == declared(recorded(stack(tmp_path, **FULL)))


@pytest.mark.parametrize("as_text", [True, False])
def test_a_kubeconfig_may_be_given(tmp_path, as_text):
    content: Any = write_kubeconfig(tmp_path, "given").read_text()
    given = content if as_text else yaml.safe_load(content)
    deployment = stack(tmp_path, clusters={"home": {}})
    secret = partial(pulumi.Output.secret, given)
    program = recorded(deployment, kubeconfigs={"home": secret})
    [provider] = [item for item in program.resources if "providers" in item.kind]
    assert json.loads(provider.properties["kubeconfig"])["current-context"] == "given"
    assert "kubeconfig" in provider.secrets


def test_a_cluster_that_is_still_to_be_made_has_its_objects_shown(tmp_path):
    deployment = stack(tmp_path, clusters={"home": {}})
    for kubeconfigs in (unknown, {"home": unknown}):
        program = recorded(deployment, preview=True, kubeconfigs=kubeconfigs)
        assert len(program.objects) == len(recorded(stack(tmp_path)).objects)


@pytest.mark.parametrize("missing", ["deployment", "secrets"])
def test_what_is_not_known_is_shown_later(tmp_path, missing):
    arguments = {"deployment": stack(tmp_path), "secrets": ALL_SECRETS} | {missing: unknown}
    program = record(lambda: declare(**arguments), preview=True)
    assert [item.kind for item in program.resources] == [TYPE]
    assert any("nothing of it is shown before" in message for message in program.messages)


def faults(deployment: Mapping[str, Any], **arguments: Any) -> str:
    with pytest.raises(StackConfigError) as raised:
        recorded(deployment, **arguments)
    return str(raised.value)


def test_everything_wrong_is_told_at_once(tmp_path):
    told = faults(stack(tmp_path, nnodes=0), secrets={"group_token": "short", "hubToken": "x"})
    assert told.startswith("SplitStack chat: 3 faults")
    assert "nnodes = 0" in told
    assert "secrets.group_token: must have at least" in told
    assert "secrets.hubToken: unknown key; known are group_token, hub_token" in told


def test_a_kubeconfig_that_does_not_fit_is_named(tmp_path):
    deployment = stack(tmp_path, clusters={"home": {"context": "other"}})
    content = write_kubeconfig(tmp_path, "given").read_text()
    told = faults(deployment, kubeconfigs={"home": content})
    assert "kubeconfigs.home: it has no context 'other'; it has: given" in told
    assert "token-of-given" not in told
    told = faults(stack(tmp_path), kubeconfigs={"hoem": content})
    assert "kubeconfigs.hoem: is the kubeconfig of no cluster in deployment.clusters (home)" in told
    told = faults(deployment, kubeconfigs={"home": "text"})
    assert "kubeconfigs.home: it is no kubeconfig" in told


def state_of(program: Program) -> dict[str, Any]:
    kept = {"pulumi:index:Stash": lambda item: {"output": item.properties["input"]},
            TYPE: lambda item: program.outputs_of[item.urn]}  # fmt: skip
    return {
        item.urn: {
            "type": item.kind,
            "outputs": kept.get(item.kind, lambda item: dict(item.properties))(item),
        }
        for item in program.resources
    }


def test_an_edit_is_told_of_the_one_that_is_edited(tmp_path):
    """Of two in one program: the other one's ranks, markers and limits are its own."""

    def both(**changes: Any) -> None:
        component(stack(tmp_path, **changes))
        component(
            stack(tmp_path, deployment_name="second", namespaces={"create": False}),
            name="chat-two",
        )

    state = state_of(record(both))
    program = record(lambda: both(nnodes=3), state=state)
    told = edit_told(program)
    assert told.count("this edit:") == 1
    assert "nnodes 2 -> 3" in told
    assert edit_told(record(both, state=state)) == ""


def test_namespaces_that_it_made_are_not_given_up_by_mistake(tmp_path):
    state = state_of(record(lambda: declare(stack(tmp_path))))
    deployment = stack(tmp_path, namespaces={"create": False})
    with pytest.raises(
        StackConfigError, match=r"would delete .*\bsplits\b.*, which this stack has"
    ):
        record(lambda: declare(deployment), state=state)
    # Another component's are none of its business.
    record(lambda: declare(deployment, name="other"), state=state)


def test_the_schema_that_every_language_gets_its_types_of():
    provider = ComponentProvider([SplitStack], "splitstack", version="1.0.0")
    assert provider.schema is not None
    schema = json.loads(provider.schema)
    assert schema["types"] == {}
    [(token, resource)] = schema["resources"].items()
    assert token == TYPE
    assert resource["isComponent"]
    assert resource["requiredInputs"] == ["deployment", "secrets"]
    described = {**resource["inputProperties"], **resource["properties"]}
    assert all(item["description"] for item in described.values())
    # As an Output in every language: nothing has to be known before the program runs.
    assert '"plain"' not in provider.schema
    assert all("\n" not in item["description"] for item in [resource, *described.values()])
    assert resource["inputProperties"].keys() == {"deployment", "secrets", "kubeconfigs"}
    assert resource["properties"].keys() == {
        "applied", "curl", "images", "managementKey", "portForward", "ranks", "specHash", "urls"
    }  # fmt: skip
