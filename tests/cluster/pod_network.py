"""Pods' network namespaces on a bridge, as a node has them, in a user namespace of their own.

Pods have the addresses that the API server says they have, so nothing that was rendered for them
is changed, and their ports are in nobody's way.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from infra.local.process import die_with_parent
from tests.waiting import wait_for

_OPEN_NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
# kwok gives pods addresses out of 10.0.0.0/24.
GATEWAY = "10.0.255.254"
_PREFIX = 16
_RELAY = Path(__file__).with_name("relay.py")


def needs_namespaces() -> pytest.MarkDecorator:
    """Skips where user namespaces are forbidden, as in most containers."""
    try:
        allowed = subprocess.run([*_OPEN_NAMESPACES, "ip", "link"], capture_output=True).returncode
    except FileNotFoundError:
        allowed = 1
    return pytest.mark.skipif(allowed != 0, reason="needs user namespaces, unshare and ip")


class Namespace:
    """A process that keeps network and mounts of its own until `close`."""

    def __init__(self, opening: list[str]) -> None:
        self._keeper = subprocess.Popen(
            [*opening, "sh", "-c", "echo; exec sleep infinity"],
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent(),
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline(), f"{' '.join(opening)} failed"
        self.pid = self._keeper.pid

    def entering(self) -> list[str]:
        """The beginning of a command that runs inside, as root of the user namespace."""
        options = ["--user", "--net", "--mount", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.pid), *options, "--"]

    def run(self, *command: str) -> str:
        """The output of a command that has to succeed inside."""
        done = subprocess.run([*self.entering(), *command], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()


class PodNetwork:
    """The node's end of the pods' network; `close` ends all of it."""

    def __init__(self) -> None:
        self.node = Namespace(_OPEN_NAMESPACES)
        self._namespaces = [self.node]
        self._relays: list[subprocess.Popen[bytes]] = []
        # Not below a test's folder: the path of a socket may have 107 characters.
        self._sockets = tempfile.TemporaryDirectory(prefix="relay-")
        self.node.run("ip", "link", "set", "lo", "up")
        self.node.run("ip", "link", "add", "pods", "type", "bridge")
        self.node.run("ip", "address", "add", f"{GATEWAY}/{_PREFIX}", "dev", "pods")
        self.node.run("ip", "link", "set", "pods", "up")

    def add_pod(self, address: str) -> Namespace:
        """The namespace of one pod, reachable at `address`."""
        pod = Namespace([*self.node.entering(), "unshare", "--net", "--mount"])
        self._namespaces.append(pod)
        cable = f"pod{len(self._namespaces)}"
        end = ["name", "eth0", "netns", str(pod.pid)]
        self.node.run("ip", "link", "add", cable, "type", "veth", "peer", *end)
        self.node.run("ip", "link", "set", cable, "master", "pods", "up")
        pod.run("ip", "link", "set", "lo", "up")
        pod.run("ip", "address", "add", f"{address}/{_PREFIX}", "dev", "eth0")
        pod.run("ip", "link", "set", "eth0", "up")
        return pod

    def publish_outside(self, port: int) -> None:
        """Pods reach loopback's `port` at `GATEWAY`, by a socket file: no cable leads out."""
        file = Path(self._sockets.name, str(port))
        self._relay([], f"unix:{file}", f"tcp:127.0.0.1:{port}")
        wait_for(file.exists, what="a relay out")
        self._relay(self.node.entering(), f"tcp:{GATEWAY}:{port}", f"unix:{file}")
        self._wait_for_listener(f"{GATEWAY}:{port}")

    def publish_pod(self, node_port: int, address: str, port: int) -> None:
        """The node's loopback leads to a pod, as to a service of type NodePort."""
        place = f"127.0.0.1:{node_port}"
        self._relay(self.node.entering(), f"tcp:{place}", f"tcp:{address}:{port}")
        self._wait_for_listener(place)

    def _relay(self, entering: list[str], source: str, target: str) -> None:
        command = [*entering, sys.executable, str(_RELAY), source, target]
        self._relays.append(subprocess.Popen(command, preexec_fn=die_with_parent()))

    def _wait_for_listener(self, place: str) -> None:
        wait_for(lambda: f" {place} " in self.node.run("ss", "-ltn"), what=f"a relay at {place}")

    def close(self) -> None:
        for relay in self._relays:
            relay.kill()
            relay.wait()
        self._sockets.cleanup()
        for namespace in reversed(self._namespaces):
            namespace.close()
