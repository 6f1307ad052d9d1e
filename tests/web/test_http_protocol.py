"""What is refused before there is a request."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from contract.specs import BlockSpec, InferenceServerSpec
from tests.web.small_upstream import MODEL, SmallUpstream
from tests.web.tier_process import TierProcess
from web.http_protocol import MAX_HEAD_BYTES, REQUEST_TIMEOUT_S, HttpProtocol


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    folder = tmp_path_factory.mktemp("server")
    with TierProcess("inference_server", InferenceServerSpec("demo", ()), folder) as server:
        yield server


def send(server: TierProcess, *pieces: bytes) -> bytes:
    """What comes back until the server closes; sending ends early when it has."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def status_and_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


LINE = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
LARGE = b"x" * MAX_HEAD_BYTES


@pytest.mark.parametrize(
    "pieces",
    [
        (LINE, b"Large: " + LARGE + b"\r\n\r\n"),
        (LINE + b"".join(b"Name-%d: value\r\n" % number for number in range(4000)) + b"\r\n",),
        (b"GET /" + LARGE + b" HTTP/1.1\r\nHost: x\r\n\r\n",),
    ],
    ids=["one header", "many headers", "path"],
)
def test_a_large_head_is_431(server: TierProcess, pieces: tuple[bytes, ...]) -> None:
    assert status_and_code(send(server, *pieces)) == (431, "headers_too_large")


def test_a_head_without_an_end_is_cut_off(server: TierProcess) -> None:
    sent = (b"x" * 10_000 for _ in range(10_000))
    answer = send(server, LINE + b"Endless: ", *sent)
    # The answer may be lost with the connection, as more was on its way.
    assert not answer or status_and_code(answer) == (431, "headers_too_large")


def test_a_second_request_on_a_connection_is_bounded_too(server: TierProcess) -> None:
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/livez", headers={"Large": LARGE.decode()}).status_code == 431
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("content", [b"\x16\x03\x01\x00\xa5\x01\x00\n\n", b"HELLO\r\n\r\n"])
def test_what_is_not_http_gets_the_stable_body(server: TierProcess, content: bytes) -> None:
    assert status_and_code(send(server, content)) == (400, "invalid_http")


def test_ordinary_requests_pass(server: TierProcess) -> None:
    headers = {f"Name-{number}": "x" * 500 for number in range(50)}
    assert httpx.get(f"{server.url}/livez", headers=headers).status_code == 200
    body = {"model": "x" * 2 * MAX_HEAD_BYTES, "session_id": "s", "seq_no": 1, "data": "x"}
    assert httpx.post(f"{server.url}/v1/infer", json=body).json()["error"]["param"] == "model"


def half_sent(server: TierProcess, *pieces: bytes, every_s: float = 0.0) -> tuple[bytes, float]:
    """What comes back, and after how many seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        # Who is cut off meanwhile is told so before the end.
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(every_s)
        return connection.recv(65536), time.monotonic() - began


HASTE_S = 2.0
TRICKLE = (b"G", b"E", b"T", b" ", b"/", b"l", b"i", b"v", b"e", b"z")
POST = b"POST /v1/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TierProcess]:
    """The limit of ten seconds is two."""
    assert REQUEST_TIMEOUT_S == 5 * HASTE_S
    folder, spec = tmp_path_factory.mktemp("hasty"), InferenceServerSpec("demo", ())
    with TierProcess("inference_server", spec, folder, request_timeout_s=HASTE_S) as server:
        yield server


def test_half_sent_requests_are_reaped(hasty: TierProcess) -> None:
    halves: list[tuple[bytes, ...]] = [
        (),
        (b"GET /livez",),
        (LINE,),
        (POST + b"Content-Length: 1000\r\n\r\n",),
        (POST + b'Content-Length: 1000\r\n\r\n{"model": ',),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",),
        (LINE + b"\r\n" + LINE,),
    ]
    with ThreadPoolExecutor(len(halves) + 1) as threads:
        ending = [threads.submit(half_sent, hasty, *pieces) for pieces in halves]
        trickle = threads.submit(half_sent, hasty, *TRICKLE, every_s=HASTE_S / 5)
        # Others notice nothing.
        assert httpx.get(f"{hasty.url}/livez").status_code == 200
        answers = [one.result() for one in (*ending, trickle)]
    for answer, seconds in answers:
        if not answer.startswith(b"HTTP/1.1 200"):
            assert seconds > 0.9 * HASTE_S
            assert status_and_code(answer) in ((408, "request_timeout"), (400, "invalid_http"))
    assert sum(b" 408 " in answer for answer, _ in answers) >= 6


def test_a_large_body_on_a_slow_line_is_not_cut_off(hasty: TierProcess) -> None:
    """It is allowed a second more for each 16 KiB."""
    content = b'{"model": "' + b"x" * 400_000 + b'"}'
    head = POST + b"Content-Length: %d\r\n\r\n" % len(content)
    pieces = [content[start : start + 32_000] for start in range(0, len(content), 32_000)]
    answer, seconds = half_sent(hasty, head, *pieces, every_s=0.25)
    assert seconds > 1.5 * HASTE_S
    assert b" 400 " in answer.splitlines()[0]


def test_a_slow_answer_is_not_a_slow_request(tmp_path: Path) -> None:
    with SmallUpstream() as upstream:
        block = BlockSpec("block-1", upstream.url)
        spec = InferenceServerSpec("demo", (block,), request_deadline_s=1.2 * HASTE_S)
        with TierProcess("inference_server", spec, tmp_path, request_timeout_s=HASTE_S) as server:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hang"}]}
            url = f"{server.url}/v1/chat/completions"
            assert httpx.post(url, json=body).status_code == 504


def test_uvicorn_has_what_the_protocol_rides_on() -> None:
    """A new uvicorn that renames its inside fails here rather than in front of a client."""
    may_answer, answered = asyncio.Event(), asyncio.Event()

    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await may_answer.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        answered.set()

    async def run() -> None:
        config = uvicorn.Config(application, http=HttpProtocol, lifespan="off", log_config=None)
        config.load()
        transport = Mock(asyncio.Transport)
        transport.is_closing.return_value = False
        transport.get_extra_info.return_value = None
        protocol = HttpProtocol(config, ServerState(), {})
        protocol.connection_made(transport)
        assert protocol.cycle is None
        assert not protocol.flow.read_paused
        protocol.data_received(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        cycle = protocol.cycle
        assert (cycle.more_body, protocol.url, protocol.headers[0]) == (
            True,
            b"/x",
            (b"host", b"x"),
        )
        assert not protocol._is_answering
        protocol.data_received(b"{}")
        assert (cycle.more_body, cycle.response_started) == (False, False)
        assert protocol._is_answering
        may_answer.set()
        await answered.wait()
        assert cycle.response_started
        assert cycle.response_complete
        assert not protocol._is_answering
        protocol.connection_lost(None)

    asyncio.run(asyncio.wait_for(run(), 60))
