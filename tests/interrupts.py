"""Children that heed SIGINT, however the tests themselves were started."""

from __future__ import annotations

import signal


def heed_interrupts() -> None:
    """A preexec_fn: SIGINT does in the child what it does by default.

    A shell starts what it runs in the background with SIGINT ignored, and what is ignored stays so
    in every child.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
