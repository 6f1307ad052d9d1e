"""The body of POST /v1/infer."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from service.error_body import ApiError
from service.fields import Fields, parse

FILE_FIELDS = ("files", "file")


class InferRequest(Fields):
    """`model` is a block id. `data` goes to the block, which checks it.

    `graph` and `selection_query` are part of the contract and not served yet: empty or null only.
    """

    model: Annotated[str, Field(min_length=1, max_length=256)]
    session_id: Annotated[str, Field(min_length=1, max_length=256)]
    seq_no: Annotated[int, Field(ge=0, lt=2**63)]
    data: dict[str, Any]
    graph: dict[str, Any] | None = None
    selection_query: dict[str, Any] | None = None


def parse_infer_request(document: dict[str, Any]) -> InferRequest:
    """Raises ApiError: 400 for what breaks a rule, 501 for what is not served yet."""
    request = parse(InferRequest, document)
    for name in ("graph", "selection_query"):
        if value := getattr(request, name):
            rule = f"{name}: is not supported yet; leave it out or send {{}}"
            raise ApiError(501, rule, param=name, code="not_supported", value=value)
    for name in FILE_FIELDS:
        if name in request.data:
            rule = f"data.{name}: files are not supported; send text in data.message"
            raise ApiError(400, rule, param=f"data.{name}", code="not_supported")
    return request
