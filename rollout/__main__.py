"""`python -m rollout`: brings a spec into a running group, and ends when it has answered."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

from contract.specs import GroupSpec, SpecError, load
from rollout.bringing_in import bring_in, still_serves
from rollout.errors import RolloutFailed
from rollout.group import Group
from rollout.question import Tier, ask
from web.logs import configure_logging
from web.serve import EXIT_CLEAN, EXIT_FAILED, EXIT_USAGE

SIGNING_KEY_DIGITS = 64
log = logging.getLogger("rollout")


def main(arguments: list[str] | None = None) -> int:
    """0: the spec serves and has answered; 1: it does not; 2: what it was started with is wrong.

    In the last two cases the reason, one sentence, is the last log line, and in --reason-file.
    """
    parsed = _arguments(arguments)
    configure_logging("rollout")
    signal.signal(signal.SIGTERM, _end)
    try:
        _roll_out(parsed)
    except (RolloutFailed, SpecError) as error:
        log.error("%s", error)
        if parsed.reason_file:
            Path(parsed.reason_file).write_text(f"{error}\n", "utf-8")
        return EXIT_USAGE if isinstance(error, SpecError) else EXIT_FAILED
    return EXIT_CLEAN


def _roll_out(parsed: argparse.Namespace) -> None:
    spec = load(parsed.spec, GroupSpec)
    tier = _outermost(parsed, spec)
    group = Group(parsed.master, _signing_key(parsed.signing_key_file))
    said = _Said(parsed.log_every_s)
    try:
        bring_in(group, spec, parsed.stall_s, said)
        text = ask(tier, parsed.stall_s, said)
        still_serves(group, spec, parsed.stall_s, said)
    finally:
        group.close()
    log.info("%s serves; %s answers %r", spec.model_name, tier.name, text)


def _outermost(parsed: argparse.Namespace, spec: GroupSpec) -> Tier:
    """Its answer has come through every tier."""
    if parsed.inference_server:
        key = _secret("--api-key-file", parsed.api_key_file) if parsed.api_key_file else ""
        return Tier("the inference server", parsed.inference_server, parsed.block_id, key)
    if parsed.block:
        return Tier(f"block {parsed.block_id}", parsed.block, parsed.block_id)
    return Tier("the master", parsed.master, spec.deployment_name)


class _Said:
    """Progress as log lines: a line when it has changed, each `every_s` seconds at most."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last, self._at = "", -every_s

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        first_words = line.partition(":")[0] != self._last.partition(":")[0]
        if line != self._last and (first_words or now - self._at >= self._every_s):
            self._last, self._at = line, now
            log.info("%s", line)


def _signing_key(path: str) -> bytes:
    text = _secret("--signing-key-file", path)
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if 2 * len(key) != SIGNING_KEY_DIGITS:
        raise SpecError(
            f"--signing-key-file {path}: must hold {SIGNING_KEY_DIGITS} hexadecimal digits"
        )
    return key


def _secret(option: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{option} {path}: cannot be read: {error}") from error


def _end(*_: Any) -> None:
    raise RolloutFailed(
        "was told to end before its time; what has begun goes on in the group, and the same edit "
        "again follows it"
    )


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rollout", description=__doc__)
    parser.add_argument("--spec", required=True, help="the wanted GroupSpec as JSON")
    parser.add_argument("--signing-key-file", required=True, help="signs what is pushed; hex")
    parser.add_argument("--master", required=True, help="URL of the master's HTTP")
    parser.add_argument("--block", default="", help="URL of a proxy block in front of it")
    parser.add_argument("--block-id", default="", help="that block's id")
    parser.add_argument("--inference-server", default="", help="URL of the server in front of that")
    parser.add_argument("--api-key-file", default="", help="an API key of that server")
    parser.add_argument(
        "--stall-s", type=float, default=300.0, help="seconds in which something has to move"
    )
    parser.add_argument("--log-every-s", type=float, default=10.0, help="seconds between two lines")
    parser.add_argument("--reason-file", default="", help="gets the reason where it fails")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
