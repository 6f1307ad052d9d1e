"""The socket that a tier serves HTTP on, bound before anything else starts."""

from __future__ import annotations

import errno
import socket

BACKLOG = 2048


class PortError(Exception):
    """The port cannot be had; the message is one sentence with what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; host "" is every address, IPv6 too where the machine has it.

    Raises PortError.
    """
    try:
        if not host and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
                )
            except OSError as error:
                # IPv6 compiled in but switched off: IPv4 is all there is.
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"{host or '*'}:{port}"
        if error.errno == errno.EADDRINUSE:
            reason = "is in use by another process; end that one (`ss -ltnp`) or choose a free port"
        else:
            reason = f"cannot be bound: {error.strerror or error}; check bind_address and port"
        raise PortError(f"port {where} {reason}") from error
