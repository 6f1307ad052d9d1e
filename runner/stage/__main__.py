"""`python -m runner.stage --spec FILE --rank N --token-file FILE`: one stage of the split model."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from contract.specs import GroupSpec, RankSpec, SpecError, load, read_token
from runner.errors import RunnerError
from runner.stage.process.control_thread import ControlThread
from runner.transport.connection import AddressError
from web.listener import PortError
from web.logs import configure_logging, note_in_logs

logger = logging.getLogger("runner.stage")


def main() -> int:
    """2: arguments, files or model are wrong; 1: starting again may help; 0: asked to end."""
    arguments = _parse_arguments()
    configure_logging("stage")
    note_in_logs("rank", arguments.rank)
    try:
        spec = load(arguments.spec, GroupSpec)
        token = read_token(arguments.token_file)
        rank = _find_rank(spec, arguments.rank)
        control = ControlThread(spec, rank, token)
    except (SpecError, AddressError, PortError) as error:
        print(f"runner.stage: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing is lost before it serves
    control.start()
    try:
        # torch comes only now: health and the control connection stand while it is imported.
        from runner.stage.process.load import load_stage

        compute = load_stage(spec, rank, control)
    except RunnerError as error:
        logger.error("%s", error)
        control.report_load_failure(str(error))
        return error.exit_code
    except Exception as error:  # whatever a broken checkpoint makes of its reader
        logger.exception("the weights cannot be loaded")
        control.report_load_failure(f"{type(error).__name__}: {error}"[:500])
        return 1
    compute.run()
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runner.stage", description=__doc__)
    parser.add_argument("--spec", required=True, type=Path)
    parser.add_argument("--rank", required=True, type=int)
    parser.add_argument("--token-file", required=True, type=Path)
    return parser.parse_args()


def _find_rank(spec: GroupSpec, rank: int) -> RankSpec:
    for item in spec.ranks:
        if item.rank == rank:
            return item
    known = [item.rank for item in spec.ranks]
    raise SpecError(f"--rank {rank}: must be one of the spec's ranks {known}")


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # threads are still blocked in sockets, and torch takes seconds to unload
