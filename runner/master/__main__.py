"""The master: `python -m runner.master --spec FILE --group-spec FILE --token-file FILE`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette

from contract.signature import management_key, signing_key
from contract.signed_request import Verifier
from contract.specs import GroupSpec, MasterSpec, SpecError, load, load_group_spec, read_token
from runner.master.api.app import create_app
from runner.master.api.served_models import Texts
from runner.master.engine.engine import Engine
from runner.master.group.group import Group
from runner.master.own_fault import end_process
from web.listener import PortError, bind
from web.logs import configure_logging
from web.serve import EXIT_USAGE, serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM. Returns 0 after a drain; 2 for what the user can mend: one sentence.

    A model that cannot be had is no reason to end: another one may be pushed. A fault in the tasks
    of group and engine ends the process with 1 (own_fault.end_process).
    """
    parser = argparse.ArgumentParser(prog="python -m runner.master", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="this process's spec, JSON")
    parser.add_argument(
        "--group-spec",
        type=Path,
        help="what the group serves, JSON; where there is no such file, what is pushed",
    )
    parser.add_argument("--token-file", type=Path, required=True, help="the group's shared token")
    parsed = parser.parse_args(arguments)
    configure_logging("master")
    try:
        spec = load(parsed.spec, MasterSpec)
        token = read_token(parsed.token_file)
        # The group binds this port on the event loop, too late for a plain sentence and an exit.
        bind(spec.bind_address, spec.master_port).close()
        group_spec = load_group_spec(parsed.group_spec, spec.deployment_name, "master")
    except (SpecError, PortError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    return _serve(spec, token, group_spec)


def _serve(spec: MasterSpec, token: bytes, group_spec: GroupSpec | None) -> int:
    texts = Texts(lambda: group.specs_in_use)
    group = Group(spec, token, group_spec, make_ready=texts.make_ready, on_fault=end_process)
    engine = Engine(group, on_fault=end_process)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await group.start(engine)
        yield
        await group.stop()

    key = management_key(token)
    app = create_app(
        spec,
        engine,
        texts,
        lifespan,
        lambda: key,
        Verifier(signing_key(token), time.time),
    )

    def drain_s() -> float:
        return group.served.spec.request_deadline_s if group.served else 0.0

    return serve(app, spec.bind_address, spec.http_port, drain_s, on_signal=group.drain)


if __name__ == "__main__":
    sys.exit(main())
