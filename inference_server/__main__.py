"""`python -m inference_server --spec FILE [--api-keys-file FILE]`: the public API."""

from __future__ import annotations

import argparse
import sys

from contract.api_keys import ApiKeysError
from contract.specs import InferenceServerSpec, SpecError, load
from inference_server.api import build_app
from inference_server.keys.api_keys import ApiKeys
from inference_server.request_log import RequestLog, RequestLogError
from web.logs import configure_logging
from web.serve import EXIT_USAGE, serve


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m inference_server", description=__doc__)
    parser.add_argument("--spec", required=True, help="an InferenceServerSpec as JSON")
    parser.add_argument(
        "--api-keys-file", default="", help="JSON list of hashed keys; without it all may ask"
    )
    arguments = parser.parse_args()
    configure_logging("inference-server")
    try:
        spec = load(arguments.spec, InferenceServerSpec)
        keys = ApiKeys(arguments.api_keys_file) if arguments.api_keys_file else None
        log = (
            RequestLog(spec.request_log_path, spec.request_log_rows)
            if spec.request_log_path
            else None
        )
    except (SpecError, ApiKeysError, RequestLogError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    app = build_app(spec, keys, log)
    return serve(app, spec.bind_address, spec.port, lambda: spec.request_deadline_s)


if __name__ == "__main__":
    sys.exit(main())
