"""The real `pulumi` command on a project of its own, with its state in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.local.process import die_with_parent
from tests.programs import PULUMI, PULUMI_YAML, program

REPOSITORY = Path(__file__).parents[2]
_LIMIT_S = 300.0
# What the engine calls the parts of one replacement.
_REPLACEMENT = {"replace", "create-replacement", "delete-replaced"}
_UNCHANGED = {"same", "refresh", "read"}


@dataclass(frozen=True)
class PulumiRun:
    """What one command did, from the engine's own event log."""

    command: str
    succeeded: bool
    output: str
    events: tuple[Mapping[str, Any], ...]

    @property
    def steps(self) -> list[tuple[str, str]]:
        """(the engine's operation, `<type>::<name>`) as they began."""
        found = [event["resourcePreEvent"]["metadata"] for event in self.events
                 if "resourcePreEvent" in event]  # fmt: skip
        return [(step["op"], _resource(step["urn"])) for step in found]

    @property
    def operations(self) -> dict[str, str]:
        """`<type>::<name>` of each resource to create, update, replace, delete or same.

        Types are the short ones, such as `Pod`. A command that previews first is not used, so each
        operation was carried out, or in `preview` would be.
        """
        found: dict[str, str] = {}
        for step, resource in self.steps:
            operation = "replace" if step in _REPLACEMENT else step
            # A resource that is gone is created after its deletion was refreshed.
            if operation not in _UNCHANGED or resource not in found:
                found[resource] = "same" if operation in _UNCHANGED else operation
        return found

    @property
    def changes(self) -> dict[str, str]:
        """`operations` without what stays the same."""
        return {name: kind for name, kind in self.operations.items() if kind != "same"}

    @property
    def counts(self) -> dict[str, int]:
        """How many resources each kind of operation touched."""
        return dict(Counter(self.operations.values()))

    @property
    def errors(self) -> str:
        """The messages of severity `error`."""
        return self._messages("error")

    @property
    def messages(self) -> str:
        """What the program and the engine told, errors apart."""
        return self._messages("info", "info#err", "warning")

    def _messages(self, *severities: str) -> str:
        diagnostics = [event.get("diagnosticEvent", {}) for event in self.events]
        return "\n".join(
            diagnostic["message"]
            for diagnostic in diagnostics
            if diagnostic.get("severity") in severities
        )


class PulumiWorkspace:
    """One stack of `project`, by default of this repository.

    The project's program runs where it lies; its Pulumi.yaml and the stack file are copied, so that
    `set` and the encryption key of the secrets change nothing in the repository. `kubeconfigs`
    become KUBECONFIG; `plugins` are folders with plugins' executables, first on PATH. A `backend`
    is that of another workspace, whose stacks this one may ask for.
    """

    def __init__(
        self,
        folder: Path,
        stack_file: Path,
        kubeconfigs: Iterable[Path] = (),
        plugins: Iterable[Path] = (),
        project: Path = REPOSITORY,
        backend: Path | None = None,
    ) -> None:
        self.folder = folder
        self.stack = stack_file.name.removeprefix("Pulumi.").removesuffix(".yaml")
        self._log = folder / "events.json"
        self.backend = backend or folder / "state"
        self.environment = _environment(folder, self.backend, kubeconfigs, plugins)
        self._environment = os.environ | self.environment
        self.stack_file = _copy_project(project, folder, stack_file)
        self._command("stack", "init", self.stack)

    def set(self, path: str, value: str, *, secret: bool = False) -> None:
        """`pulumi config set --path`, as the README tells people to edit a stack."""
        kind = ["--secret"] if secret else []
        self._command("config", "set", "--path", path, *kind, "--", value)

    def preview(self, *options: str) -> PulumiRun:
        """What `up` would do."""
        return self._run("preview", *options)

    def up(self, *options: str, refresh: bool = False) -> PulumiRun:
        """`pulumi up`, without its own preview; look at `succeeded`."""
        return self._run("up", "--yes", "--skip-preview", f"--refresh={refresh}".lower(), *options)

    def refresh(self, *options: str) -> PulumiRun:
        """Read the cluster into the state."""
        return self._run("refresh", "--yes", "--skip-preview", *options)

    def destroy(self, *options: str, preview: bool = False) -> PulumiRun:
        """`pulumi destroy`; without its own preview its operations were carried out."""
        without = [] if preview else ["--skip-preview"]
        return self._run("destroy", "--yes", *without, *options)

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, secrets in the clear."""
        text = self._command("stack", "output", "--json", "--show-secrets")
        outputs: dict[str, Any] = json.loads(text)
        return outputs

    def state(self) -> dict[str, Any]:
        """The deployment as the engine stores it."""
        deployment: dict[str, Any] = json.loads(self._command("stack", "export"))["deployment"]
        return deployment

    def _run(self, name: str, *options: str) -> PulumiRun:
        self._log.unlink(missing_ok=True)
        # Plugins are there or on PATH; to ask the program for their list takes seconds each time.
        fixed = ["--stack", self.stack, "--event-log", str(self._log), "--skip-plugin-pre-install"]
        command = [name, *fixed, *options]
        status, output = self._execute(*command)
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        events = tuple(json.loads(line) for line in lines)
        return PulumiRun(" ".join(command), status == 0, output, events)

    def _command(self, *arguments: str) -> str:
        """The standard output of a command that has to succeed."""
        status, output = self._execute(*arguments)
        assert status == 0, f"pulumi {' '.join(arguments)}: {output}"
        return output

    def _execute(self, *arguments: str) -> tuple[int, str]:
        executable = program("pulumi")
        assert executable is not None, "pulumi missing: run `python -m tests.programs`"
        process = subprocess.Popen(
            [str(executable), "--non-interactive", "--color=never", *arguments],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "pulumi.err").open("w"),
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        try:
            output, _ = process.communicate(timeout=_LIMIT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with the program and the plugins
            process.wait()
            raise
        errors = (self.folder / "pulumi.err").read_text()
        return process.returncode, output if process.returncode == 0 else output + errors


def _environment(
    folder: Path, state: Path, kubeconfigs: Iterable[Path], plugins: Iterable[Path]
) -> dict[str, str]:
    home = folder / "home"
    home.mkdir(parents=True)
    state.mkdir(exist_ok=True)
    # Plugins that are installed for this user serve here too; everything else is left alone.
    installed = Path.home() / ".pulumi" / "plugins"
    if installed.is_dir():
        (home / "plugins").symlink_to(installed)
    folders = [*plugins, Path(sys.executable).parent]
    for name in (*PULUMI, *PULUMI_YAML):
        if (executable := program(name)) is not None:
            folders.append(executable.parent)
    return {
        "PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]]),
        "KUBECONFIG": os.pathsep.join(map(str, kubeconfigs)),
        "PULUMI_HOME": str(home),
        "PULUMI_BACKEND_URL": f"file://{state}",
        "PULUMI_CONFIG_PASSPHRASE": "of the tests",
        "PULUMI_NEO": "false",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DEBUG_COMMANDS": "true",  # for --event-log
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }


def _copy_project(project: Path, folder: Path, stack_file: Path) -> Path:
    """The project's file with the program linked beside it; returns the copied stack file."""
    settings = yaml.safe_load((project / "Pulumi.yaml").read_text())
    options = settings["runtime"]["options"] if isinstance(settings["runtime"], dict) else {}
    if "virtualenv" in options:
        options["virtualenv"] = str(Path(sys.executable).parents[1])
    (folder / "Pulumi.yaml").write_text(yaml.safe_dump(settings))
    # The engine wants the program below the project.
    (folder / settings["main"]).symlink_to(project / settings["main"])
    stacks = folder / settings.get("stackConfigDir", ".")
    stacks.mkdir(exist_ok=True)
    return Path(shutil.copy(stack_file, stacks))


def _resource(urn: str) -> str:
    """`Pod::rank-0` from `urn:pulumi:stack::project::parent$kubernetes:core/v1:Pod::rank-0`."""
    types, name = urn.split("::", 3)[2:]
    return f"{types.split('$')[-1].split(':')[-1]}::{name}"
