"""Write every recorded file anew: `python -m tests.goldens`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.goldens.recorded_file import RECORD, RECORDED

if __name__ == "__main__":
    for file in RECORDED.glob("*.json"):
        file.unlink()
    os.environ[RECORD] = "1"
    sys.exit(pytest.main([str(Path(__file__).parent)]))
