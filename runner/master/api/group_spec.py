"""GET and PUT /group/spec: what the group serves, and what it is to serve.

Who pushes a spec signs the whole request (contract/signed_request.py): what was read in passing can
neither be changed nor sent again, on the loopback either.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from contract.signed_request import SCHEME, SignatureRefused, Verifier
from contract.specs import GroupSpec, SpecError, parse
from runner.master.engine.engine import Engine
from runner.master.group.swap import SwapRunning
from web.body import read_body
from web.errors import ApiError

PATH = "/group/spec"
MOST_BYTES = 256 * 1024


async def get_group_spec(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    served, swap = engine.in_force, engine.swap
    serving: dict[str, Any] | None = None
    if served is not None:
        serving = {
            "spec_hash": served.spec_hash,
            "model_name": served.spec.model_name,
            "commit": served.commit,
            "spec": asdict(served.spec),
        }
    return JSONResponse({"serving": serving, "swap": None if swap is None else swap.describe()})


async def put_group_spec(request: Request) -> Response:
    """202 where a swap begins or goes on, 200 where the spec is in force now."""
    engine: Engine = request.app.state.engine
    body = await read_body(request, MOST_BYTES)
    _check_signature(request, body)
    spec = _parse(body, request.app.state.spec.deployment_name)
    try:
        swap = await engine.push(spec)
    except SwapRunning as error:
        raise ApiError(409, str(error), code="swap_running") from None
    if swap is not None:
        return JSONResponse({"spec_hash": swap.spec_hash, "phase": swap.phase}, 202)
    assert engine.in_force is not None
    return JSONResponse({"spec_hash": engine.in_force.spec_hash, "phase": "serving"})


def _check_signature(request: Request, body: bytes) -> None:
    verifier: Verifier | None = request.app.state.verifier
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    try:
        if verifier is None:
            raise SignatureRefused("no signature counts: this process knows no key")
        verifier.take(request.headers.get("authorization", ""), request.method, path, body)
    except SignatureRefused as error:
        raise ApiError(
            401,
            f"header Authorization: {error}",
            param="Authorization",
            code="invalid_signature",
            headers={"WWW-Authenticate": SCHEME},
        ) from None


def _parse(body: bytes, deployment_name: str) -> GroupSpec:
    try:
        spec = parse(body, GroupSpec, PATH, "the body")
    except SpecError as error:
        raise ApiError(400, str(error), code="invalid_value") from None
    if spec.deployment_name != deployment_name:
        message = (
            f"deployment_name = {spec.deployment_name!r}: must be that of this group,"
            f" {deployment_name!r}"
        )
        raise ApiError(400, message, param="deployment_name", code="invalid_value")
    return spec
