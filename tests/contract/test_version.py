from __future__ import annotations

import tomllib
from pathlib import Path

from contract.version import VERSION


def test_it_is_the_package_s_own() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == VERSION
