"""A stage's device, asked of a driver that stands in for CUDA's, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

from runner.stage.process.cuda_driver import FoundDevice, found_device
from tests.runner.fake_driver import MEMORY_BYTES, fake_driver, needs_compiler

UUID_OF_IT = UUID("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")
PROGRAM = """
import sys
from runner.stage.process.cuda_driver import found_device
assert "torch" not in sys.modules
print(found_device(sys.argv[1]))
"""


def found(library: Path, device: str) -> subprocess.CompletedProcess[str]:
    """What another process finds: a library is loaded once."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(library.parent)}
    command = [sys.executable, "-c", PROGRAM, device]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


@needs_compiler
def test_uuid_and_memory_of_a_gpu(tmp_path: Path) -> None:
    library = fake_driver(tmp_path / "driver", UUID_OF_IT)
    expected = FoundDevice(f"GPU-{UUID_OF_IT}", MEMORY_BYTES)
    assert found(library, "cuda:0").stdout.strip() == str(expected)


@needs_compiler
def test_a_driver_that_does_not_answer_is_no_fault(tmp_path: Path) -> None:
    library = fake_driver(tmp_path / "driver", UUID_OF_IT)
    answer = found(library, "cuda:1")
    assert answer.stdout.strip() == str(FoundDevice())
    assert "the UUID of cuda:1 is not known: cuDeviceGet answers 101" in answer.stderr
    broken = fake_driver(tmp_path / "broken", UUID_OF_IT, init_answers=999)
    assert "cuInit answers 999" in found(broken, "cuda:0").stderr


def test_a_cpu_has_no_uuid() -> None:
    assert found_device("cpu") == FoundDevice()
