"""`python -m proxy_block --spec FILE`: one proxy block."""

from __future__ import annotations

import argparse
import sys

from proxy_block.api import build_app
from proxy_block.generation_config import GenerationConfig
from proxy_block.session_store import SessionStore, StoreUnavailable
from service.contract import ProxySpec, SpecError, load
from service.drain import EXIT_USAGE, serve
from service.error_body import ApiError
from service.fields import parse
from service.log_format import configure_logging


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proxy_block", description=__doc__)
    parser.add_argument("--spec", required=True, help="a ProxySpec as JSON")
    path = parser.parse_args().spec
    configure_logging("proxy-block")
    try:
        spec = load(path, ProxySpec)
        defaults = parse(GenerationConfig, spec.generation_config)
        store = SessionStore(spec.sessions)
    except ApiError as error:
        print(f"--spec {path}: generation_config: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (SpecError, StoreUnavailable) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    app = build_app(spec, defaults, store)
    return serve(app, spec.bind_address, spec.port, spec.request_deadline_s)


if __name__ == "__main__":
    sys.exit(main())
