"""The plugin's process: says its port on standard output, serves until the engine ends it."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import grpc
from pulumi.runtime.proto.provider_pb2_grpc import add_ResourceProviderServicer_to_server

from tests.cluster.kubernetes_plugin.provider import KubernetesProvider

# The engine waits for many objects at the same time, each in a call of its own.
_THREADS = 64
_LOOK_S = 1.0
_MESSAGE_BYTES = 64 * 2**20


def main() -> None:
    options = [
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ]
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=options)
    add_ResourceProviderServicer_to_server(KubernetesProvider(version("pulumi-kubernetes")), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # An engine that was killed ends nobody. Looked up before it can be: once it has the port.
    engine = os.getppid()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    while os.getppid() == engine and server.wait_for_termination(_LOOK_S):
        pass


if __name__ == "__main__":
    main()
