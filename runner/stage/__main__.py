"""`python -m runner.stage --spec FILE --token-file FILE`: one stage of the split model."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from contract.specs import SpecError, StageSpec, load, read_token
from runner.stage.process.control_thread import ControlThread
from runner.transport.connection import AddressError
from web.listener import PortError
from web.logs import configure_logging, note_in_logs


def main() -> int:
    """2: arguments, files or model are wrong; 1: starting again may help; 0: asked to end."""
    arguments = _parse_arguments()
    configure_logging("stage")
    try:
        spec = load(arguments.spec, StageSpec)
        note_in_logs("rank", spec.rank)
        control = ControlThread(spec, read_token(arguments.token_file))
    except (SpecError, AddressError, PortError) as error:
        print(f"runner.stage: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing is lost before it serves
    control.start()
    if spec.device.startswith("cuda"):
        keep_gpu_memory_in_one_piece()
    let_waiting_threads_sleep()
    # torch comes only now: health and the control connection stand while it is imported.
    from runner.stage.process.worker import Worker

    return Worker(spec, control).run()


def keep_gpu_memory_in_one_piece() -> None:
    """Activations of any size come and go: torch's allocator is to extend its segments rather than
    to keep pieces that nothing fits. Read when torch is imported; what is set already stays."""
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def let_waiting_threads_sleep() -> None:
    """A thread of torch's that waits for the others spins, by itself for a millisecond or so: where
    other processes use the cores too, it keeps those that it waits for from running. So many turns
    cost a lone process nothing (benchmarks/README.md). Read when torch is imported; what is set
    already stays."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runner.stage", description=__doc__)
    parser.add_argument("--spec", required=True, type=Path)
    parser.add_argument("--token-file", required=True, type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # threads are still blocked in sockets, and torch takes seconds to unload
