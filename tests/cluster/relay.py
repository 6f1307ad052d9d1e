"""`python relay.py FROM TO`: connections to FROM go to TO, bytes unchanged.

Both are `tcp:HOST:PORT` or `unix:PATH`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


async def _listen(place: str, accept: Any) -> asyncio.Server:
    kind, _, address = place.partition(":")
    if kind == "unix":
        return await asyncio.start_unix_server(accept, address)
    host, port = address.rsplit(":", 1)
    return await asyncio.start_server(accept, host, int(port))


async def _connect(place: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    kind, _, address = place.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(address)
    host, port = address.rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _relay(source: str, target: str) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await _connect(target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    async with await _listen(source, accept) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_relay(*sys.argv[1:3]))
