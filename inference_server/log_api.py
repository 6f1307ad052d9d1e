"""GET /logs/{request,session,block}/{id}: what the request log has."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inference_server.request_log import Column, RequestLog, RequestLogError
from web.errors import ApiError

_COLUMNS: dict[str, Column] = {
    "request": "request_id",
    "session": "session_id",
    "block": "block_id",
}


class LogApi:
    """`log` None: this server keeps none."""

    def __init__(self, log: RequestLog | None) -> None:
        self._log = log

    async def read(self, request: Request) -> Response:
        """A key without reads_all_logs sees the requests of its own only."""
        if self._log is None:
            message = "this server keeps no request log (request_log_path is empty)"
            raise ApiError(404, message, code="no_request_log")
        kind, value = request.path_params["kind"], request.path_params["value"]
        if kind not in _COLUMNS:
            message = f"/logs/{kind[:80]}: must be one of {', '.join(_COLUMNS)}"
            raise ApiError(404, message, code="not_found")
        caller = request.state.caller
        seen = None if caller.reads_all_logs else caller.name
        try:
            rows = await self._log.find(_COLUMNS[kind], value, seen)
        except RequestLogError as error:
            raise ApiError(503, str(error), code="request_log_unavailable") from error
        return JSONResponse({"object": "list", _COLUMNS[kind]: value, "data": rows})

    def routes(self) -> list[Route]:
        return [Route("/logs/{kind}/{value:path}", self.read)]
