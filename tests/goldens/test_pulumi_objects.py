"""Every resource that the Pulumi program registers, with its options, for every kind of stack.

A changed name, type or parent makes Pulumi replace what runs; a changed input updates it. Neither
may come from a change of the code's layout.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.goldens.recorded_file import check_recorded
from tests.infra.program_stacks import NAMES, SECRETS, matrix
from tests.infra.recorded_program import (
    TOKEN,
    Program,
    Recorded,
    run_program,
    whole_numbers,
    write_kubeconfig,
)

REPOSITORY = Path(__file__).parents[2]
ALL_SECRETS = {"group_token": TOKEN, **SECRETS}
SPEC_FILES = (
    "group.json",
    "master.json",
    "stage.json",
    "keeper.json",
    "proxy.json",
    "inference_server.json",
)
# `outputs` of a recorded program has those of its components too, one over the other.
OUTPUTS = ("curl", "images", "management_key", "port_forward", "ranks", "spec_hash", "urls")
# The dashboard, which is a file of the repository already.
LONGEST_TEXT = 20_000


@pytest.fixture(autouse=True)
def _at_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pulumi runs the program; without a hub, and without a kubeconfig of the user's. Images
    are built for this machine, where no cluster tells."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", NAMES)
def test_stacks_of_the_matrix(name: str, tmp_path: Path) -> None:
    program = run_program(matrix(tmp_path)[name], secrets=ALL_SECRETS)
    check_recorded(f"pulumi-{name.replace(' ', '-')}", as_recorded(program))


def test_a_stack_without_optional_secrets(tmp_path: Path) -> None:
    mapping = matrix(tmp_path)["everything on"]
    mapping["inference_server"] = mapping["inference_server"] | {"anonymous": True}
    program = run_program(mapping, secrets={"group_token": TOKEN})
    check_recorded("pulumi-no-optional-secrets", as_recorded(program))


@pytest.mark.parametrize(("stack", "cluster"), [("kind", "kind"), ("phi-128k-2", "gcp-cluster-2")])
def test_stack_files_of_the_repository(stack: str, cluster: str, tmp_path: Path) -> None:
    """With a kubeconfig of the test's own, and a model of which nothing is known from here."""
    text = (REPOSITORY / "stacks" / f"Pulumi.{stack}.yaml").read_text("utf-8")
    deployment = yaml.safe_load(text)["config"]["splitstack:deployment"]
    deployment["clusters"] = {
        cluster: {"kubeconfig": str(write_kubeconfig(tmp_path, cluster))},
    }
    if not deployment["common_params"]["model_name"].startswith("demo:"):
        deployment["common_params"]["model_name"] = "nobody-at-all/no-model"
        for params in deployment["per_rank_params"]:
            params["layers"] = f"{8 * params['rank']}-{8 * params['rank'] + 7}"
    anonymous = deployment.get("inference_server", {}).get("anonymous")
    keys = {} if anonymous else {"api_keys": SECRETS["api_keys"]}
    program = run_program(deployment, secrets={"group_token": TOKEN, **keys})
    check_recorded(f"pulumi-file-{stack}", as_recorded(program))


def as_recorded(program: Program) -> dict[str, Any]:
    """Resources by URN, short of what every URN begins with, and the hash of each spec file.

    The order of registrations is not recorded: it varies, and nothing hangs on it.
    """
    resources = {short(item.urn): resource(item) for item in program.resources}
    assert len(resources) == len(program.resources)
    digests = {
        f"{item.cluster}/{item.name}/{file}": hashlib.sha256(text.encode()).hexdigest()
        for item in program.of_kind("ConfigMap")
        for file, text in item.manifest["data"].items()
        if file in SPEC_FILES
    }
    assert program.outputs["spec_hash"] in digests.values()
    outputs = {name: readable(program.outputs.get(name)) for name in OUTPUTS}
    if line := outputs["port_forward"]:
        # Before it are the test's own paths.
        outputs["port_forward"] = line[line.index("port-forward") :]
    return {"outputs": outputs, "resources": resources, "spec_hashes": digests}


def resource(item: Recorded) -> dict[str, Any]:
    found = {
        "type": item.kind,
        "name": item.name,
        "parent": short(item.parent),
        "provider": short(item.provider).rpartition("::")[0],
        "inputs": readable(whole_numbers(item.properties)),
        "secrets": sorted(item.secrets),
        "depends_on": sorted(map(short, item.depends_on)),
        "delete_before_replace": item.delete_before_replace,
        "replace_on_changes": list(item.replace_on_changes),
        "replacement_trigger": item.replacement_trigger,
        "replace_with": sorted(map(short, item.replace_with)),
        "aliases": list(item.aliases),
        "protect": item.protect,
        "retain_on_delete": item.retain_on_delete,
        "ignore_changes": list(item.ignore_changes),
        "additional_secret_outputs": list(item.additional_secret_outputs),
        "timeouts": list(filter(None, item.timeouts)) and list(item.timeouts),
    }
    return {key: value for key, value in found.items() if value}


def short(urn: str) -> str:
    return urn.removeprefix("urn:pulumi:test::splitstack::").removeprefix("pulumi:pulumi:")


def readable(value: Any) -> Any:
    """Texts of several lines as lists of their lines, which a diff shows one by one."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"{len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    if isinstance(value, str) and "\n" in value:
        return value.split("\n")
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return [readable(item) for item in value] if isinstance(value, list) else value


def test_nothing_of_this_machine_is_recorded(tmp_path: Path) -> None:
    program = run_program(matrix(tmp_path)["everything on"], secrets=ALL_SECRETS)
    text = json.dumps(as_recorded(program))
    for path in (tmp_path, REPOSITORY, Path.home()):
        assert str(path) + "/" not in text
