"""The Go programs that the cluster tests run: which ones, where they lie, how they are built.

Their versions stand in `programs/<name>/go.mod` alone. A built program lies in a folder named after
a digest of all that it was built from, so a change of versions builds anew and nothing else does.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MODULES = Path(__file__).parent / "programs"
_CACHE = Path(__file__).parents[2] / ".cache" / "programs"
_KWOK_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
)


@dataclass(frozen=True)
class GoProgram:
    """One program, built from the Go module in `programs/<folder>`."""

    name: str
    folder: str
    module: str
    """The module in go.mod whose version is the program's."""
    package: str
    version_variable: str = ""
    """The linker sets it to the version; some programs know their own."""
    version_arguments: tuple[str, ...] = ()
    """They make the program print its version; without them one on PATH is not used."""
    comes_with: str = ""
    """The program whose installation on PATH has this one beside it."""
    files_of: tuple[str, str] = ("", "")
    """A folder in programs/ and a module in its go.mod: the source of `files`."""
    files: tuple[str, ...] = ()
    """What has to lie beside the program."""

    @property
    def version(self) -> str:
        return _required_version(self.folder, self.module)

    @property
    def built(self) -> Path:
        """Where it lies once it is built."""
        return _CACHE / f"{self.name}-{self._digest()}" / self.name

    def _digest(self) -> str:
        content = hashlib.sha256(repr(self).encode())
        for folder in sorted({self.folder, self.files_of[0]} - {""}):
            for file in ("go.mod", "go.sum"):
                content.update((_MODULES / folder / file).read_bytes())
        return content.hexdigest()[:12]


def _kubernetes(name: str, *version_arguments: str) -> GoProgram:
    return GoProgram(
        name,
        folder="kubernetes",
        module="k8s.io/kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        version_variable="k8s.io/component-base/version.gitVersion",
        version_arguments=version_arguments or ("--version",),
    )


GO_PROGRAMS = {
    program.name: program
    for program in (
        GoProgram(
            "pulumi",
            folder="pulumi",
            module="github.com/pulumi/pulumi/pkg/v3",
            package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
            version_variable="github.com/pulumi/pulumi/sdk/v3/go/common/version.Version",
            version_arguments=("version",),
        ),
        # Newer modules of the SDK lack the language host, older ones the two files beside it that
        # the newer command expects.
        GoProgram(
            "pulumi-language-python",
            folder="pulumi-language-python",
            module="github.com/pulumi/pulumi/sdk/v3",
            package="github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python",
            comes_with="pulumi",
            files_of=("pulumi", "github.com/pulumi/pulumi/sdk/v3"),
            files=(
                "python/cmd/pulumi-language-python-exec",
                "python/dist/pulumi-resource-pulumi-python",
            ),
        ),
        # It has releases of its own; an installed pulumi has one beside it.
        GoProgram(
            "pulumi-language-yaml",
            folder="pulumi-language-yaml",
            module="github.com/pulumi/pulumi-yaml",
            package="github.com/pulumi/pulumi-yaml/cmd/pulumi-language-yaml",
            comes_with="pulumi",
        ),
        # Judges the workflows of .github.
        GoProgram(
            "actionlint",
            folder="actionlint",
            module="github.com/rhysd/actionlint",
            package="github.com/rhysd/actionlint/cmd/actionlint",
            version_variable="github.com/rhysd/actionlint.version",
            version_arguments=("-version",),
        ),
        GoProgram(
            "etcd",
            folder="etcd",
            module="go.etcd.io/etcd/server/v3",
            package="go.etcd.io/etcd/server/v3",
            version_arguments=("--version",),
        ),
        _kubernetes("kube-apiserver"),
        _kubernetes("kubectl", "version", "--client"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        # Never taken from PATH: its releases bring the stage files in another form.
        GoProgram(
            "kwok",
            folder="kwok",
            module="sigs.k8s.io/kwok",
            package="sigs.k8s.io/kwok/cmd/kwok",
            files_of=("kwok", "sigs.k8s.io/kwok"),
            files=tuple(f"kustomize/stage/{stage}" for stage in _KWOK_STAGES),
        ),
    )
}


@functools.cache
def find(name: str) -> Path | None:
    """The built program, or one of the right version on PATH; None when there is neither."""
    program = GO_PROGRAMS[name]
    if program.built.exists():
        return program.built
    if program.comes_with and (companion := find(program.comes_with)) is not None:
        beside = companion.with_name(name)
        return beside if beside.exists() else None
    found = shutil.which(name) if program.version_arguments else None
    if found is None:
        return None
    command = [found, *program.version_arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    number = re.escape(program.version.removeprefix("v"))
    return Path(found) if re.search(rf"\bv?{number}(?![\w.-])", output) else None


def build_missing(names: Iterable[str] = tuple(GO_PROGRAMS)) -> str:
    """Build what `find` does not find, one after the other; returns why that cannot be, or "".

    Raises subprocess.CalledProcessError where Go is there and a build fails.
    """
    wanted = list(names)
    if all(find(name) for name in wanted):
        return ""
    if reason := _why_no_go(wanted):
        return reason
    with _only_builder():
        find.cache_clear()
        missing = [GO_PROGRAMS[name] for name in wanted if find(name) is None]
        for number, program in enumerate(missing, start=1):
            _build(program, f"[{number}/{len(missing)}] {program.name} {program.version}")
    find.cache_clear()
    return ""


def _why_no_go(wanted: Iterable[str]) -> str:
    names = ", ".join(name for name in wanted if find(name) is None)
    if shutil.which("go") is None:
        return f"{names}: Go 1.26 or newer is needed to build them (https://go.dev/dl)"
    # The go command refuses a go.mod that asks for a newer Go than itself.
    probe = ["go", "list", "-m"]
    answer = subprocess.run(
        probe, cwd=_MODULES / "kubernetes", capture_output=True, text=True, check=False
    )
    return "" if answer.returncode == 0 else f"{names}: {answer.stderr.strip()}"


@contextmanager
def _only_builder() -> Iterator[None]:
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(program: GoProgram, title: str) -> None:
    start = time.monotonic()
    print(f"{title}: building", flush=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
        target = Path(scratch) / program.built.parent.name
        target.mkdir()
        _run_with_progress(_build_command(program, target), program, title)
        for file in program.files:
            copy = Path(shutil.copy(_module_folder(*program.files_of) / file, target))
            copy.chmod(copy.stat().st_mode | 0o200)  # the module cache is read-only
        for old in _CACHE.glob(f"{program.name}-{'[0-9a-f]' * 12}"):
            shutil.rmtree(old)
        target.rename(program.built.parent)  # complete, or not there
    print(f"{title}: built in {time.monotonic() - start:.0f} s", flush=True)


def _build_command(program: GoProgram, target: Path) -> list[str]:
    linked = "-s -w"
    if program.version_variable:
        linked += f" -X {program.version_variable}={program.version}"
    # Two packages at a time: more cores would need more memory than small machines have.
    options = ["-p", "2", "-mod=readonly", "-trimpath", "-buildvcs=false"]
    tags = ["-tags", "osusergo,grpcnotrace"]
    output = str(target / program.name)
    return ["go", "build", *options, *tags, "-ldflags", linked, "-o", output, program.package]


def _run_with_progress(command: list[str], program: GoProgram, title: str) -> None:
    start = time.monotonic()
    environment = os.environ | {"CGO_ENABLED": "0"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=_MODULES / program.folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                print(f"{title}: {time.monotonic() - start:.0f} s", flush=True)
        if process.returncode != 0:
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, output.read()[-3000:])


def _required_version(folder: str, module: str) -> str:
    """The version of `module` in a go.mod of ours."""
    text = (_MODULES / folder / "go.mod").read_text()
    found = re.search(rf"^(?:require)?\s*{re.escape(module)} (\S+)", text, re.MULTILINE)
    assert found is not None, f"{folder}/go.mod does not require {module}"
    return found.group(1)


def _module_folder(folder: str, module: str) -> Path:
    """Where Go keeps the sources of `module` in the version of `folder`'s go.mod."""
    command = ["go", "mod", "download", "-json", module]
    answer = subprocess.run(command, cwd=_MODULES / folder, capture_output=True, text=True)
    answer.check_returncode()
    return Path(json.loads(answer.stdout)["Dir"])
