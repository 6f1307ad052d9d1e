"""`python -m proxy_block --spec FILE [secrets' files]`: one proxy block."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from contract.specs import ProxySpec, SpecError, load, read_management_key
from proxy_block.api import build_app
from proxy_block.generation_config import parse_generation_config
from proxy_block.stores.interface import SessionStore, StoreUnavailable
from proxy_block.stores.redis import RedisStore
from proxy_block.stores.sqlite import SqliteStore
from web.errors import ApiError
from web.logs import configure_logging
from web.serve import EXIT_USAGE, serve


def main() -> int:
    arguments = _arguments()
    configure_logging("proxy-block")
    try:
        spec = load(arguments.spec, ProxySpec)
        defaults = parse_generation_config(spec.generation_config)
        key = _management_key(arguments.management_key_file)
        store = _open_store(spec, arguments.session_password_file)
    except ApiError as error:
        print(f"--spec {arguments.spec}: generation_config: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (SpecError, StoreUnavailable) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    app = build_app(spec, defaults, store, key)
    return serve(app, spec.bind_address, spec.port, lambda: spec.request_deadline_s)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m proxy_block", description=__doc__)
    parser.add_argument("--spec", required=True, help="a ProxySpec as JSON")
    parser.add_argument(
        "--session-password-file", default="", help="password of the store at sessions.url"
    )
    parser.add_argument(
        "--management-key-file",
        default="",
        help="what callers of /management prove; on a loopback address nobody has to",
    )
    return parser.parse_args()


def _management_key(path: str) -> Callable[[], str] | None:
    """Reads it anew for each proof: a new token of the group's restarts no block.

    Raises SpecError where there is none now.
    """
    if not path:
        return None
    read_management_key(path)
    return partial(read_management_key, path)


def _open_store(spec: ProxySpec, password_file: str) -> SessionStore:
    """Raises StoreUnavailable for what cannot become right by waiting."""
    if not spec.sessions.url:
        return SqliteStore(spec.sessions)
    try:
        password = Path(password_file).read_text("utf-8").strip() if password_file else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"--session-password-file {password_file}: {error}") from error
    return RedisStore(spec.sessions, f"{spec.deployment_name}:{spec.block_id}", password)


if __name__ == "__main__":
    sys.exit(main())
