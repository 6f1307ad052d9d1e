from __future__ import annotations

import signal
import subprocess
import sys

from tests.interrupts import heed_interrupts

SAYS = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_child_of_tests_in_the_background_can_be_interrupted() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        said = [
            subprocess.check_output([sys.executable, "-c", SAYS], preexec_fn=preexec, text=True)
            for preexec in (None, heed_interrupts)
        ]
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == ["False\n", "True\n"]
