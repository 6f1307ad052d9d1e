"""A child process for the supervisor's tests: HTTP health on a port, or an early end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--started", type=Path, help="append the pid to this file")
    parser.add_argument("--ended", type=Path, help="append NAME to this file on SIGTERM")
    parser.add_argument("--name", default="")
    parser.add_argument("--until", type=Path, help="end on SIGTERM once this file is there")
    parser.add_argument("--exit-code", type=int)
    arguments = parser.parse_args()
    if arguments.started:
        with arguments.started.open("a") as file:
            file.write(f"{os.getpid()}\n")
    if arguments.exit_code is not None:
        print("layers = 3: no such layers", file=sys.stderr)
        return arguments.exit_code

    def end(*_: object) -> None:
        if arguments.ended:
            with arguments.ended.open("a") as file:
                file.write(f"{arguments.name}\n")
        threading.Thread(target=leave, daemon=True).start()

    def leave() -> None:
        while arguments.until and not arguments.until.exists():
            time.sleep(0.02)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    ThreadingHTTPServer(("127.0.0.1", arguments.port), Health).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
