"""The master's process: `python -m runner.master --spec FILE --token-file FILE`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette

from contract.signature import management_key
from contract.specs import GroupSpec, SpecError, load, read_token
from runner.errors import ModelUnavailable
from runner.master.api.app import create_app
from runner.master.engine.engine import Engine
from runner.master.group.group import Group
from runner.master.own_fault import end_process
from runner.master.text.model_text import ModelText
from runner.models.folder import resolve_model
from web.listener import PortError, bind
from web.logs import configure_logging
from web.serve import EXIT_USAGE, serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM. Returns 0 after a drain; 2 for what the user can mend: one sentence;
    1 where the model's files cannot be had now.

    A fault in the tasks of group and engine ends the process with 1 (own_fault.end_process).
    """
    parser = argparse.ArgumentParser(prog="python -m runner.master", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="the rank group's spec, JSON")
    parser.add_argument("--token-file", type=Path, required=True, help="the group's shared token")
    parsed = parser.parse_args(arguments)
    configure_logging("master")
    try:
        spec = load(parsed.spec, GroupSpec)
        token = read_token(parsed.token_file)
        # The group binds this port on the event loop, too late for a plain sentence and an exit.
        bind(spec.bind_address, spec.master_port).close()
        folder = resolve_model(spec.model_name, spec.model_revision, spec.model_cache)
        text = ModelText.load(folder.path)
    except (SpecError, ModelUnavailable, PortError) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, ModelUnavailable) else EXIT_USAGE
    return _serve(spec, token, text)


def _serve(spec: GroupSpec, token: bytes, text: ModelText) -> int:
    group = Group(spec, token, on_fault=end_process)
    engine = Engine(spec, group, on_fault=end_process)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await group.start(engine)
        yield
        await group.stop()

    key = management_key(token)
    app = create_app(spec, engine, text, lifespan, lambda: key)
    return serve(
        app, spec.bind_address, spec.http_port, spec.request_deadline_s, on_signal=group.drain
    )


if __name__ == "__main__":
    sys.exit(main())
