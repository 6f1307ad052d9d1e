"""schemathesis as its users run it, against an OpenAPI document and the process it describes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# A case takes milliseconds, an API has about ten operations and each four phases.
LIMIT_S, LIMIT_S_PER_EXAMPLE = 300, 3


def fuzz(url: str, document: dict[str, Any], folder: Path, examples: int, exclude: str = "") -> str:
    """Every check but `exclude`, `examples` cases per operation and phase; returns the report.

    The same cases at each run. Raises AssertionError with the report when a check fails.
    """
    (folder / "openapi.json").write_text(json.dumps(document))
    command = Path(sys.executable).with_name("schemathesis")
    options = ["--checks", "all", "--seed", "1", "--continue-on-failure"]
    options += ["--generation-database", "none", "--warnings", "off"]
    options += ["--exclude-checks", exclude] if exclude else []
    ended = subprocess.run(
        [str(command), "run", "openapi.json", "--url", url, "-n", str(examples), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S + LIMIT_S_PER_EXAMPLE * examples,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    return ended.stdout
