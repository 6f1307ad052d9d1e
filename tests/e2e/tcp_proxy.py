"""A TCP proxy that a test can cut: the network between two processes."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field

CHUNK = 65536


@dataclass(eq=False)
class _Pair:
    """Both ends of one connection. `told` is what its target sent."""

    near: socket.socket
    far: socket.socket
    flowing: threading.Event = field(default_factory=threading.Event)
    told: bytearray = field(default_factory=bytearray)

    def close(self) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.flowing.set()


class TcpProxy:
    """Forwards `listen` to `target` until `cut` (connections end), `stall` (those that there are
    carry nothing more) or `freeze` (nor do new ones)."""

    def __init__(self, listen: tuple[str, int], target: tuple[str, int]) -> None:
        self.target = target
        self.listener = socket.create_server(listen)
        self.frozen = False
        self.pairs: list[_Pair] = []
        self.told: list[bytearray] = []
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = socket.create_connection(self.target, timeout=5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connect(_Pair(near, far))

    def _connect(self, pair: _Pair) -> None:
        with self.lock:
            self.pairs.append(pair)
            self.told.append(pair.told)
            if not self.frozen:
                pair.flowing.set()
        ways = ((pair.near, pair.far, bytearray()), (pair.far, pair.near, pair.told))
        for way in ways:
            threading.Thread(target=self._pump, args=(pair, *way), daemon=True).start()

    def _pump(
        self, pair: _Pair, source: socket.socket, sink: socket.socket, told: bytearray
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                pair.flowing.wait()
                sink.sendall(data)
                told += data
        # An end is not heard of either.
        pair.flowing.wait()
        pair.close()

    def cut(self) -> int:
        """End every connection; new ones pass. Returns how many there were."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            pair.close()
        return len(pairs)

    def stall(self) -> int:
        """As behind a host that is gone: no byte and no end any more. Returns how many."""
        with self.lock:
            for pair in self.pairs:
                pair.flowing.clear()
            return len(self.pairs)

    def freeze(self) -> None:
        """As when a cable is pulled."""
        self.frozen = True
        self.stall()

    def thaw(self) -> None:
        """The network is back; what was frozen is lost with its connections."""
        self.frozen = False
        self.cut()

    def close(self) -> None:
        self.listener.close()
        self.thaw()
