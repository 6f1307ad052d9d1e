"""The outputs of another Pulumi stack, as its command tells them where no engine runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from infra.cluster.kubeconfig import PROJECT_ROOT, KubeconfigError

_PATIENCE_S = 60.0


def stack_outputs(name: str) -> Mapping[str, Any]:
    """Secrets in the clear; raises KubeconfigError. Its backend is the one that is logged in to."""
    pulumi = shutil.which("pulumi")
    if pulumi is None:
        raise KubeconfigError(f"stack {name} cannot be read: there is no pulumi in PATH")
    command = [pulumi, "stack", "output", "--json", "--show-secrets", "--non-interactive"]
    try:
        done = subprocess.run(
            [*command, "--stack", name],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        raise KubeconfigError(f"stack {name} cannot be read: no answer in time") from None
    if done.returncode:
        said = done.stderr.strip().removeprefix("error: ")
        raise KubeconfigError(f"stack {name} cannot be read: {said}")
    outputs: dict[str, Any] = json.loads(done.stdout or "{}")
    return outputs
