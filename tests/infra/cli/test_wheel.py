"""The wheel, installed where no clone is: everything that a command reads comes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel, which shares what it depends on with ours."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = run(
        "git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"
    )
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source))
    (wheel,) = folder.glob("splitstack-*.whl")
    venv.create(folder / "environment", symlinks=True)
    python = folder / "environment" / "bin" / "python"
    run(*pip, "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel))
    # Of a folder that a .pth file names no .pth file is read: our editable install stays out.
    (own,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "environment"


def run(*command: str, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def splitstack(installed: Path, folder: Path, *arguments: str) -> str:
    return run(str(installed / "bin" / "splitstack"), *arguments, cwd=folder)


def test_a_stack_that_comes_with_it(installed: Path, tmp_path: Path) -> None:
    plan = json.loads(splitstack(installed, tmp_path, "plan", "-s", "local", "--json"))
    assert len(plan["ranks"]) == 2
    python = str(installed / "bin" / "python")
    where = run(python, "-c", "import infra; print(infra.__file__)", cwd=tmp_path)
    assert str(installed) in where


def test_what_the_processes_read_comes_with_it(installed: Path, tmp_path: Path) -> None:
    names = (
        "infra/stack.schema.json",
        "inference_server/page/index.html",
        "infra/cluster/observability",
    )
    (packages,) = (installed / "lib").glob("python*/site-packages")
    assert [name for name in names if not (packages / name).exists()] == []
