"""The body that every error has."""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from web.errors import error_response, install_error_handlers
from web.request_id import RequestIdMiddleware


def test_value_is_shown_short_however_large_or_deep() -> None:
    deep: list[object] = []
    for _ in range(900):
        deep = [deep]
    for value in ("x" * 10_000_000, list(range(1_000_000)), deep, {"a": "b" * 500}):
        body = json.loads(bytes(error_response(400, "m", param="p", value=value).body))
        assert len(body["error"]["value"]) <= 80
    assert body["error"]["type"] == "invalid_request_error"


def test_a_defect_keeps_its_request_id() -> None:
    async def fail(_: Request) -> Response:
        raise RuntimeError("secret detail")

    app = Starlette(routes=[Route("/", fail)])
    install_error_handlers(app)
    client = TestClient(RequestIdMiddleware(app), raise_server_exceptions=False)
    answer = client.get("/", headers={"X-Request-Id": "bad id\t"})
    assert answer.status_code == 500
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-request-id"] != "bad id\t"
    assert "secret" not in answer.text
