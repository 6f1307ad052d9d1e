"""Which Splitstack this is: an image holds its own folders, and no package's metadata."""

from __future__ import annotations

VERSION = "0.1.0"
