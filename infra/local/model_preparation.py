"""Fetching a model before its ranks start, so that they find it and the user sees it happen."""

from __future__ import annotations

import json
import subprocess
import sys

from infra.local.process import die_with_parent
from infra.stack.local_error import LocalStackError


def prepare_model(name: str, revision: str) -> str:
    """Have the runner fetch configuration and tokenizer (a demo model: all of it).

    Returns the commit that the name stands for now. Progress goes to our standard error. Raises
    LocalStackError with the runner's sentence.
    """
    command = [sys.executable, "-m", "runner.models.folder", name, "--revision", revision]
    finished = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent(),
        check=False,
    )
    try:
        answer = json.loads(finished.stdout)
    except ValueError:
        raise LocalStackError(
            f"model_name = {name!r}: {' '.join(command[1:4])} ended with code "
            f"{finished.returncode}; the cause is printed above"
        ) from None
    if "error" in answer:
        raise LocalStackError(answer["error"])
    return str(answer["commit"])
