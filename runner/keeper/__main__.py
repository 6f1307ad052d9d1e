"""`python -m runner.keeper --spec FILE [--group-spec FILE] --token-file FILE`: a rank's keeper."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette

from contract.signature import management_key, signing_key
from contract.signed_request import Verifier
from contract.specs import GroupSpec, KeeperSpec, SpecError, load, load_group_spec, read_token
from runner.keeper.api import create_app
from runner.keeper.asking import EngineApi
from runner.keeper.lead import Lead
from runner.keeper.prepare import EngineUnusable, check_engine
from runner.keeper.rank import Rank
from runner.keeper.watch import Watch
from runner.master.own_fault import end_process
from runner.stage.process.health import health_app
from runner.transport.connection import AddressError
from web.listener import PortError, bind
from web.logs import configure_logging, note_in_logs
from web.serve import EXIT_USAGE, serve

# Others than rank 0 have no requests of their own to finish.
_NO_DRAIN_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM. Returns 0 after a drain; 2 for what the user can mend: one sentence."""
    parser = argparse.ArgumentParser(prog="python -m runner.keeper", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="this rank's spec, JSON")
    parser.add_argument(
        "--group-spec",
        type=Path,
        help="what the group serves, JSON (rank 0); where there is no such file, what is pushed",
    )
    parser.add_argument("--token-file", type=Path, required=True, help="the group's shared token")
    parsed = parser.parse_args(arguments)
    configure_logging("keeper")
    try:
        spec = load(parsed.spec, KeeperSpec)
        note_in_logs("rank", spec.rank)
        token = read_token(parsed.token_file)
        check_engine(spec.engine)
        if spec.rank:
            return _follow(spec, token)
        bind(spec.bind_address, spec.master_port).close()
        return _lead(
            spec, token, load_group_spec(parsed.group_spec, spec.deployment_name, "keeper")
        )
    except (SpecError, AddressError, PortError, EngineUnusable) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE


def _lead(spec: KeeperSpec, token: bytes, group_spec: GroupSpec | None) -> int:
    """Rank 0's: the group, the API, and its own engine."""
    lead = Lead(spec, token, group_spec, on_fault=end_process)
    engine = EngineApi(lead)
    watch = Watch(engine)
    rank = Rank(spec, token, answers=watch.answered)
    lead.engine_says = lambda: rank.engine_says

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await lead.start()
        rank.start()
        watching = asyncio.create_task(watch.run())
        watching.add_done_callback(_check)
        yield
        watching.cancel()
        await lead.stop()
        await rank.stop()
        await engine.upstream.close()

    key = management_key(token)
    verifier = Verifier(signing_key(token), time.time)
    app = create_app(engine, watch, lifespan, lambda: key, verifier)
    return serve(
        app,
        spec.bind_address,
        spec.http_port,
        lambda: engine.deadline_s if lead.in_force else 0.0,
        on_signal=lead.drain,
    )


def _follow(spec: KeeperSpec, token: bytes) -> int:
    """Another rank's: its engine, and what probes ask."""
    rank = Rank(spec, token)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        rank.start()
        yield
        await rank.stop()

    async def left() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(rank.released.wait(), rank.deadline_s)

    app = health_app(lambda: "", lambda: rank.not_ready, rank.registry)
    app.router.lifespan_context = lifespan
    return serve(
        app,
        spec.bind_address,
        spec.http_port,
        lambda: _NO_DRAIN_S,
        on_drain=left,
        on_signal=rank.leave,
    )


def _check(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        end_process(error)


if __name__ == "__main__":
    sys.exit(main())
