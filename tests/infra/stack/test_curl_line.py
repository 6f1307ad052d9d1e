from __future__ import annotations

from pathlib import Path

from infra.stack.curl_line import curl_line
from infra.stack.file import load_stack_file

REPOSITORY = Path(__file__).parents[3]


def test_the_readme_shows_what_make_up_prints() -> None:
    local = load_stack_file(REPOSITORY / "stacks" / "Pulumi.local.yaml", ()).deployment
    url = f"http://127.0.0.1:{local.inference_server.node_port}"
    line = curl_line(url, local.proxy_blocks[0].block_id)
    assert f"```\n{line}\n```" in (REPOSITORY / "README.md").read_text("utf-8")
