"""An HTTP answer as the goldens record it: all but the words of its message."""

from __future__ import annotations

from typing import Any

import httpx

_HEADERS = ("allow", "retry-after", "www-authenticate")


def outcome(answer: httpx.Response) -> Any:
    """ "accepted", or status, type, code, param, and the headers that clients act upon."""
    if answer.status_code == 200:
        return "accepted"
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {"status": answer.status_code, "body": "no error body"}
    found: dict[str, Any] = {"status": answer.status_code}
    found |= {name: error.get(name) for name in ("type", "code", "param")}
    found["has_value"] = "value" in error
    found |= {name: answer.headers[name] for name in _HEADERS if name in answer.headers}
    if "allow" in found:  # comes out of a set
        found["allow"] = ", ".join(sorted(found["allow"].split(", ")))
    return found
