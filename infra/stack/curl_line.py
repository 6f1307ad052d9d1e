"""The line that a person pastes to get the first answer."""

from __future__ import annotations

import json

# Left out of the quotes, the shell fills it in: within a session a number asked before gets the
# answer recorded for it, and the line is there to be edited and pasted again.
_FRESH = "'$(date +%s)'"


def curl_line(url: str, block_id: str, *, with_key: bool = False) -> str:
    """One request to a block through the inference server at `url`.

    `with_key` takes an API key out of the shell's SPLITSTACK_API_KEY.
    """
    body = {
        "model": block_id,
        "session_id": f"session-{_FRESH}",
        "seq_no": 1,
        "data": {
            "mode": "completions",
            "message": "What is the capital of France?",
            "generation_config": {"max_new_tokens": 64, "do_sample": False},
        },
        "graph": {},
        "selection_query": {},
    }
    headers = "-H 'Content-Type: application/json'"
    if with_key:
        headers += ' -H "Authorization: Bearer $SPLITSTACK_API_KEY"'
    return f"curl -X POST {url}/v1/infer {headers} -d '{json.dumps(body)}'"
