"""A stand-in for CUDA's driver: a library of its name that answers the questions of a stage."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
MEMORY_BYTES = 80 * 10**9
_SOURCE = """
#include <stddef.h>
#include <string.h>
static const unsigned char uuid[16] = {%s};
int cuInit(unsigned flags) { return %d; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : 0; }
int cuDeviceGetUuid_v2(unsigned char *found, int device) { memcpy(found, uuid, 16); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = %dUL; return 0; }
"""


def fake_driver(folder: Path, uuid: UUID, *, init_answers: int = 0) -> Path:
    """The library, in a folder to put into LD_LIBRARY_PATH."""
    assert COMPILER is not None
    folder.mkdir()
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text(_SOURCE % (", ".join(map(str, uuid.bytes)), init_answers, MEMORY_BYTES))
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, source], check=True)
    return library
