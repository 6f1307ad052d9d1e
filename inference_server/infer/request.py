"""The body of POST /v1/infer."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from inference_server.infer.graph import has_nodes
from web.body import Fields, parse, whole_number
from web.errors import invalid_field
from web.unserved import Table, Unserved, served_fields

# Files come with gRPC and multipart one day; until then a request must not lose them silently.
_FILES = Unserved("is not supported: send text in data.message", ({}, []))
# What AIOS's own clients send beside the fields of InferRequest, and inside of data.
UNSERVED: Table = {
    "ts": Unserved("says when the client asked, and nothing depends on that", anything=True),
    "files": _FILES,
    "timeout": Unserved("is not supported: the header X-Request-Timeout has the seconds"),
    "retries": Unserved("is not supported: send a request that failed again yourself", (0,)),
}
UNSERVED_DATA: Table = {"files": _FILES, "file": _FILES}


def _object_or_text(value: object) -> object:
    if not isinstance(value, dict | str):
        raise ValueError("must be an object or a string")  # noqa: TRY004 (what pydantic catches)
    return value


class InferRequest(Fields):
    """`model` is a block id, "" where `selection_query` chooses. `data` goes to the block, which
    checks it; with `graph` it goes to the node that `model` names."""

    model: Annotated[str, Field(max_length=256)] = ""
    session_id: Annotated[str, Field(min_length=1, max_length=256)]
    seq_no: Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(whole_number)]
    data: Annotated[Any, BeforeValidator(_object_or_text)]
    graph: dict[str, Any] | None = None
    selection_query: dict[str, Any] | None = None


def parse_infer_request(document: dict[str, Any]) -> InferRequest:
    """Raises ApiError 400."""
    # null means left out, as everywhere.
    served = served_fields(document, UNSERVED)
    given = {name: value for name, value in served.items() if value is not None or name == "data"}
    request = parse(InferRequest, given)
    if not request.model and not has_nodes(request.graph) and not request.selection_query:
        rule = "must name a block, or selection_query must say how to choose one"
        raise invalid_field("model", rule)
    _refuse_files(request.data)
    return request


def _refuse_files(data: dict[str, Any] | str) -> None:
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError):
            return  # a plain text
    if isinstance(data, dict):
        served_fields(data, UNSERVED_DATA, "data")
