"""`python -m inference_server --spec FILE`: the public API."""

from __future__ import annotations

import argparse
import sys

from inference_server.api import build_app
from service.contract import InferenceServerSpec, SpecError, load
from service.drain import EXIT_USAGE, serve
from service.log_format import configure_logging


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m inference_server", description=__doc__)
    parser.add_argument("--spec", required=True, help="an InferenceServerSpec as JSON")
    arguments = parser.parse_args()
    configure_logging("inference-server")
    try:
        spec = load(arguments.spec, InferenceServerSpec)
    except SpecError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    return serve(build_app(spec), spec.bind_address, spec.port, spec.request_deadline_s)


if __name__ == "__main__":
    sys.exit(main())
