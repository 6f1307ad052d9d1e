"""One-way latency between two processes on loopback: a plain TCP socket beside gloo.

    python -m benchmarks.transport

Both are timed in interleaved rounds of the same run; a one-way time is half a round trip. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time

import torch
import torch.distributed as distributed

from benchmarks.hardware import describe_hardware

SIZES = (4 * 1024, 1024 * 1024)


def echo_tcp(port: int, rounds: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in SIZES:
            view = memoryview(bytearray(size))
            for _ in range(rounds):
                receive_exactly(connection, view)
                connection.sendall(view)


def receive_exactly(connection: socket.socket, view: memoryview) -> None:
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionError("the peer closed")
        view = view[count:]


def join_gloo(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)


def echo_gloo(port: int, rounds: int) -> None:
    join_gloo(1, port)
    for size in SIZES:
        tensor = torch.empty(size, dtype=torch.uint8)
        for _ in range(rounds):
            distributed.recv(tensor, 0)
            distributed.send(tensor, 0)
    distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    listener = socket.create_server(("127.0.0.1", 0))
    gloo_port = free_port()
    peers = [
        multiprocessing.Process(target=echo_tcp, args=(listener.getsockname()[1], rounds)),
        multiprocessing.Process(target=echo_gloo, args=(gloo_port, rounds)),
    ]
    for peer in peers:
        peer.start()
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    join_gloo(0, gloo_port)
    result: dict[str, float] = {}
    for size in SIZES:
        view, tensor = memoryview(bytearray(size)), torch.empty(size, dtype=torch.uint8)
        times: dict[str, list[float]] = {"tcp": [], "gloo": []}
        for _ in range(rounds):
            start = time.perf_counter()
            connection.sendall(view)
            receive_exactly(connection, view)
            middle = time.perf_counter()
            distributed.send(tensor, 1)
            distributed.recv(tensor, 1)
            times["tcp"].append(middle - start)
            times["gloo"].append(time.perf_counter() - middle)
        for name, values in times.items():
            microseconds = statistics.median(values) / 2 * 1e6
            result[f"{name}_{size}_bytes_us"] = round(microseconds, 1)
            print(f"{name:5} {size:>8} bytes one way: {microseconds:8.1f} us (median of {rounds})")
    distributed.destroy_process_group()
    for peer in peers:
        peer.join(30)
    print(json.dumps(result | {"hardware": describe_hardware()}))


if __name__ == "__main__":
    main()
