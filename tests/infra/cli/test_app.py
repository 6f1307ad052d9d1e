from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.hub_server import COMMIT, HubServer, Repository, serving
from tests.waiting import free_ports

PHI = str(Path(__file__).parents[3] / "stacks" / "Pulumi.phi-128k-2.yaml")
REQUEST = Path(__file__).parents[1] / "aios" / "splits_create_phi_128k_2.json"
DEPLOYMENT = {
    "deployment_name": "small",
    "nnodes": 2,
    "common_params": {"model_name": "demo:smollm2-135m-instruct"},
    "proxy_blocks": [{"block_id": "one"}],
}


def splitstack(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with one stack, `small`."""
    (tmp_path / "stacks").mkdir()
    write_stack(tmp_path, DEPLOYMENT)
    return tmp_path


def write_stack(folder: Path, deployment: object) -> None:
    document = {"config": {"splitstack:deployment": deployment}}
    (folder / "stacks" / "Pulumi.small.yaml").write_text(yaml.safe_dump(document))


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a user error says: exit code 2, one paragraph, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "\n\n" not in done.stderr.strip()
    return done.stderr


def test_the_version_is_that_of_the_package(project: Path) -> None:
    done = splitstack(project, "--version")
    assert (done.returncode, done.stdout) == (0, f"splitstack {version('splitstack')}\n")


def test_help_has_a_line_for_every_command(project: Path) -> None:
    done = splitstack(project, "--help")
    assert done.returncode == 0
    for command in ("up", "down", "status", "logs", "chat", "plan", "import-split"):
        assert f"  {command} " in done.stdout


def test_plan_shows_a_table_or_json(project: Path) -> None:
    table = splitstack(project, "plan", "-s", "small")
    assert table.returncode == 0
    assert "0-" in table.stdout
    assert "-29" in table.stdout
    document = json.loads(splitstack(project, "plan", "-s", "small", "--json").stdout)
    assert [rank["rank"] for rank in document["ranks"]] == [0, 1]


def test_plan_locks_a_model_and_needs_no_hub_from_then_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(project, DEPLOYMENT | {"common_params": {"model_name": "some/model"}})
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 9}
    files = {
        "config.json": json.dumps(config | {"num_attention_heads": 2}).encode(),
        "model.safetensors": b"",
        "tokenizer.json": b"{}",
    }
    monkeypatch.setenv("HF_HOME", str(project / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(HubServer({"some/model": Repository(files)})) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        locked = splitstack(project, "plan", "-s", "small", "--lock")
    assert locked.returncode == 0, locked.stderr
    lock = project / "stacks" / "small.lock.json"
    assert json.loads(lock.read_text())["commit"] == COMMIT
    shown = f"note: the model is locked by stacks/small.lock.json at commit {COMMIT}"
    assert shown in " ".join(locked.stdout.split())
    again = splitstack(project, "plan", "-s", "small", "--json")
    assert json.loads(again.stdout)["commit"] == COMMIT
    lock.unlink()
    told = refusal(splitstack(project, "plan", "-s", "small"))
    assert f"the hub cannot be reached at {url}" in told
    assert "cannot be locked" in refusal(splitstack(project, "plan", "-s", "small", "--lock"))
    assert not lock.exists()


def test_plan_takes_this_machines_memory_as_up_does(project: Path) -> None:
    document = json.loads(splitstack(project, "plan", "-s", "small", "--json").stdout)
    assert document["memory_checked"]
    assert all(rank["kv_tokens"] > 0 for rank in document["ranks"])


def test_help_lines_are_whole(project: Path) -> None:
    said = splitstack(project, "--help").stdout
    assert "..." not in said.partition("Commands:")[2]
    assert "its entry for the list on standard output" in " ".join(said.split())


def test_set_changes_what_is_planned(project: Path) -> None:
    arguments = ("--set", "nnodes=4", "--set", "deployment_name=other", "--json")
    document = json.loads(splitstack(project, "plan", "-s", "small", *arguments).stdout)
    assert (document["deployment_name"], len(document["ranks"])) == ("other", 4)


def test_a_file_is_a_stack_too(project: Path) -> None:
    assert splitstack(project, "plan", "-s", "stacks/Pulumi.small.yaml").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("plan", "-s", "none"),
            "no file stacks/Pulumi.none.yaml; there are: chat-blue, chat-green, dra,",
        ),
        (("plan", "-s", "./none.yaml"), "none.yaml: 1 fault\n  the file: cannot be read"),
        (("plan", "-s", "small", "--set", "nnodes=0"), "nnodes = 0: must be at least 1"),
        (("plan", "-s", "small", "--set", "nonsense"), "nonsense: must be path=value"),
        (
            ("up", "-s", "small", "--set", "nnodse=4"),
            "nnodse = 4: unknown key; did you mean nnodes?",
        ),
        (("up", "-s", PHI), "gpu_pinning = 'visible-devices': each of the 4 ranks needs a GPU"),
        (
            ("up", "-s", "small", "--set", "common_params.model_name=./nowhere"),
            "model_name = './nowhere': there is no such folder",
        ),
        (
            ("up", "-s", "small", "--set", "common_params.model_name=demo:none"),
            "model_name = 'demo:none': no such demo model; there is: demo:smollm2",
        ),
        (("down", "-s", "small"), "no stack and no deployment small is running"),
        (("status", "-s", "small"), "no stack and no deployment small is running"),
        (("logs", "-s", "small"), "no stack and no deployment small is running"),
        (("down",), "no stack is running below"),
        (("chat",), "no stack is running below"),
        (("chat", "-s", "small", "--url", "http://x"), "--stack and --url: give either"),
        (("doctor", "-s", "small"), "names no clusters. doctor checks the clusters"),
        (("plan",), "error: missing option '--stack' / '-s'; see: "),
        (("plan", "-s"), "error: option '-s' requires an argument; see: "),
        (("nonsense",), "error: no such command 'nonsense'; see: "),
        (("import-split", "none.json"), "none.json: cannot be read"),
        (("import-split", "stacks/Pulumi.small.yaml"), "Pulumi.small.yaml: is not JSON"),
    ],
)
def test_a_user_error_is_one_paragraph(
    project: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    if arguments[0] == "up":
        # The default port may be in use by a stack that runs on this machine.
        (port,) = free_ports(1)
        arguments += ("--set", f"inference_server.node_port={port}")
        done = splitstack(project, *arguments)
        done.stdout = done.stdout.partition("preparing")[0]
    else:
        done = splitstack(project, *arguments)
    assert sentence in refusal(done)
    assert not list(project.glob(".splitstack/*/state.json"))


def test_all_faults_of_a_file_are_told_at_once(project: Path) -> None:
    write_stack(project, DEPLOYMENT | {"nnodes": "many", "gpu_pinning": "maybe", "colour": "red"})
    said = refusal(splitstack(project, "up", "-s", "small"))
    for fault in ("nnodes = 'many'", "gpu_pinning = 'maybe'", "colour = 'red'"):
        assert fault in said


def test_a_missing_option_is_a_usage_error(project: Path) -> None:
    done = splitstack(project, "plan")
    assert done.returncode == 2
    assert "--stack" in done.stderr


def test_import_split_prints_a_stack_file_and_warns_beside_it(project: Path) -> None:
    done = splitstack(project, "import-split", str(REQUEST))
    assert done.returncode == 0
    deployment = yaml.safe_load(done.stdout)["config"]["splitstack:deployment"]
    assert deployment["deployment_name"] == "phi-128k-2"
    assert done.stderr.startswith("warning: ")
    written = splitstack(project, "import-split", str(REQUEST), "-o", "out.yaml")
    assert (written.stdout, (project / "out.yaml").read_text()) == ("", done.stdout)


def test_import_split_reads_standard_input(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "import-split", "-"],
        input=REQUEST.read_text(),
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "deployment_name: phi-128k-2" in done.stdout
