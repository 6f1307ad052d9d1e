"""Verbs that change something ask for the management key; what reads and generates does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from web.errors import install_error_handlers
from web.proof import Proof

KEY = "management-key-of-the-test"
ANY_ADDRESS = ["", "0.0.0.0", "::", "10.0.0.7", "host.test"]


class Everything(HTTPEndpoint):
    async def get(self, _request: Request) -> Response:
        return Response("read")

    async def put(self, _request: Request) -> Response:
        return Response("put")


async def done(_request: Request) -> Response:
    return Response("done")


def client(bind_address: str, key: Callable[[], str] | None = lambda: KEY) -> TestClient:
    routes = [
        Route("/read", done),
        Route("/generate", done, methods=["POST"]),
        Route("/change", done, methods=["POST"]),
        Route("/change", done, methods=["GET"]),
        Route("/both", done, methods=["GET", "DELETE"]),
        Route("/everything", Everything),
    ]
    app = Starlette(routes=Proof(bind_address, key).guard(routes, ("/generate",)))
    install_error_handlers(app)
    return TestClient(app)


@pytest.mark.parametrize("bind_address", ANY_ADDRESS)
def test_reading_and_generating_are_open(bind_address: str) -> None:
    asked = client(bind_address)
    assert asked.get("/read").text == asked.get("/change").text == "done"
    assert asked.head("/read").status_code == 200
    assert asked.post("/generate").text == "done"


@pytest.mark.parametrize("bind_address", ANY_ADDRESS)
@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xfc"],
)
def test_a_verb_without_proof_is_refused(bind_address: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    answer = client(bind_address).post("/change", headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("authentication_error", "Authorization")
    assert error["code"] == "invalid_management_key"
    assert "pulumi stack output management_key --show-secrets" in error["message"]
    assert KEY not in answer.text


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/both"), ("PUT", "/everything"), ("GET", "/everything")]
)
def test_a_route_is_behind_the_proof_unless_it_only_reads(method: str, path: str) -> None:
    asked = client("")
    assert asked.request(method, path).status_code == 401
    headers = {"Authorization": f"bearer {KEY}"}
    assert asked.request(method, path, headers=headers).status_code == 200


def test_with_the_key_it_is_done() -> None:
    answer = client("").post("/change", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.text == "done"


@pytest.mark.parametrize("bind_address", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_on_one_machine_nobody_is_asked(bind_address: str) -> None:
    assert client(bind_address).post("/change").text == "done"
    assert client(bind_address, None).post("/change").text == "done"


def test_without_a_key_no_key_is_right() -> None:
    for given in (KEY, "None"):
        answer = client("", None).post("/change", headers={"Authorization": f"Bearer {given}"})
        assert answer.status_code == 401
        assert "--management-key-file" in answer.json()["error"]["message"]


def test_a_key_that_changed_counts_at_once() -> None:
    keys = ["first-key"]
    asked = client("", lambda: keys[-1])
    first = {"Authorization": "Bearer first-key"}
    assert asked.post("/change", headers=first).status_code == 200
    keys.append("second-key")
    assert asked.post("/change", headers=first).status_code == 401


def test_other_paths_and_methods_are_told_as_before() -> None:
    assert client("").post("/nowhere").status_code == 404
    assert client("").delete("/change").status_code == 405
