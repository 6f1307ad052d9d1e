"""Silent streams through two tiers: headers, comments, replicas, the request log, the page."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

import inference_server
from contract.specs import BlockSpec
from tests.inference_server.conftest import Tiers
from tests.waiting import wait_for
from tests.web.tier_process import TierProcess
from web.events import COMMENT

# Many processes, killed and silent for seconds; tests/web shows each rule in one.
pytestmark = pytest.mark.slow

BLOCK = "block-1"
OWN = COMMENT.decode().strip()


@pytest.fixture(scope="module")
def replicas(tiers: Tiers) -> list[TierProcess]:
    return [tiers.proxy(BLOCK), tiers.proxy(BLOCK)]


@pytest.fixture(scope="module")
def server(tiers: Tiers, replicas: list[TierProcess]) -> TierProcess:
    """The proxies behind it are silent for ten seconds: the comments are its own."""
    urls = tuple(one.url for one in replicas)
    block = BlockSpec(BLOCK, "", replica_urls=urls)
    log = str(tiers.folder / "silent-log.sqlite3")
    return tiers.server(block, comment_s=0.3, request_log_path=log, request_deadline_s=20)


def body(text: str) -> dict[str, Any]:
    return {"model": BLOCK, "messages": [{"role": "user", "content": text}], "stream": True}


def logged(server: TierProcess, answer: httpx.Response) -> dict[str, Any]:
    request_id = answer.headers["x-request-id"]
    [row] = httpx.get(f"{server.url}/logs/request/{request_id}").json()["data"]
    assert isinstance(row, dict)
    return row


@pytest.mark.parametrize("text", ["be late", "pause", "comment"])
def test_comments_are_not_counted(server: TierProcess, tiers: Tiers, text: str) -> None:
    tiers.upstream.held = True
    comment = ": comment" if text == "comment" else OWN
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body(text)) as answer:
        lines = answer.iter_lines()
        comments = 0
        while comments < 3:
            comments += next(lines).startswith(comment)
        tiers.upstream.held = None
        comments += sum(line.startswith(comment) for line in lines)
    assert comments == 10 or text != "comment"
    row = logged(server, answer)
    assert (row["outcome"], row["status"], row["completion_tokens"]) == ("ok", 200, 7)
    # Three comments 0.3 s apart, or those of the upstream, before the first event or after it.
    if text == "pause":
        assert row["first_s"] < row["duration_s"] - 0.6
    else:
        assert row["first_s"] > 0.6


def test_a_replica_that_dies_after_the_headers_costs_nobody_anything(
    server: TierProcess, tiers: Tiers
) -> None:
    doomed, other = tiers.proxy("doomed"), tiers.proxy("doomed")
    urls = (doomed.url, other.url)
    log = str(tiers.folder / "doomed-log.sqlite3")
    block = BlockSpec("doomed", "", replica_urls=urls)
    server = tiers.server(block, comment_s=0.3, request_log_path=log)
    asked = {**body("be late"), "model": "doomed"}
    url = f"{server.url}/v1/chat/completions"
    before = len(tiers.upstream.requests)
    begun: list[str] = []

    def ask(_: int) -> tuple[httpx.Response, str]:
        with httpx.stream("POST", url, json=asked) as answer:
            pieces = answer.iter_text()
            first = next(pieces)
            begun.append(first)
            return answer, first + "".join(pieces)

    with ThreadPoolExecutor(2) as threads:
        with tiers.held():
            answers = threads.map(ask, range(2))
            wait_for(lambda: len(begun) == 2)
            assert len(tiers.upstream.requests) == before + 2
            doomed.process.kill()
            # One of the two is asked of the other replica.
            wait_for(lambda: len(tiers.upstream.requests) == before + 3)
        found = list(answers)
    for answer, text in found:
        assert text.count("assistant") == 1
        assert text.endswith("data: [DONE]\n\n")
        row = logged(server, answer)
        assert (row["outcome"], row["replica"]) == ("ok", other.url)
    [found] = httpx.get(f"{server.url}/v1/blocks").json()["data"]
    assert [one["in_flight"] for one in found["replicas"]] == [0, 0]


def test_a_failure_after_the_headers_is_an_event_and_in_the_log(
    server: TierProcess, tiers: Tiers
) -> None:
    lone = tiers.proxy("lone")
    log = str(tiers.folder / "lone-log.sqlite3")
    server = tiers.server(
        BlockSpec("lone", lone.url), comment_s=0.3, request_log_path=log, request_deadline_s=4
    )
    url = f"{server.url}/v1/chat/completions"
    asked = {**body("be late"), "model": "lone"}
    with tiers.held(), httpx.stream("POST", url, json=asked) as answer:
        assert answer.status_code == 200
        lone.process.kill()
        lines = [line for line in answer.iter_lines() if line and line != OWN]
    error = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert error["code"] == "deadline_exceeded"
    assert error["request_id"] == answer.headers["x-request-id"]
    row = logged(server, answer)
    assert (row["outcome"], row["code"]) == ("failed", "deadline_exceeded")
    assert (row["completion_tokens"], row["first_s"]) == (0, None)


def test_the_openai_client_reads_through_comments(server: TierProcess) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        for text in ("be late", "pause", "comment"):
            stream = client.chat.completions.create(
                model=BLOCK, messages=[{"role": "user", "content": text}], stream=True
            )
            read = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert read == "".join(f"piece {number} " for number in range(5))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_reads_through_comments(server: TierProcess, tmp_path: Path) -> None:
    page = Path(inference_server.__file__).parent / "page"
    for name in ("api.js", "storage.js"):
        (tmp_path / name).write_text(page.joinpath(name).read_text().replace("/page/", "./"))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    script = tmp_path / "read.js"
    script.write_text(
        "globalThis.window = globalThis;\n"
        "globalThis.addEventListener = () => {};\n"
        "globalThis.localStorage = globalThis.sessionStorage = "
        "{getItem: () => null, removeItem: () => {}};\n"
        "const ask = fetch; globalThis.fetch = (path, rest) => ask(process.argv[2] + path, rest);\n"
        'const { chatCompletion } = await import("./api.js");\n'
        "for await (const chunk of chatCompletion(JSON.parse(process.argv[3])))\n"
        '  process.stdout.write(chunk.choices[0]?.delta.content ?? "");\n'
    )
    for text in ("be late", "pause", "comment"):
        command = ["node", str(script), server.url, json.dumps(body(text))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == "".join(f"piece {number} " for number in range(5)), done.stderr


def test_a_feed_without_news_has_its_headers_and_comments(tiers: Tiers) -> None:
    """The small upstream tells of no pipeline: what comes is the reason, once."""
    proxy = tiers.proxy("quiet")
    server = tiers.server(BlockSpec("quiet", proxy.url), comment_s=0.2)
    url = f"{server.url}/v1/events?model=quiet"
    with httpx.stream("GET", url) as answer:
        lines = (line for line in answer.iter_lines() if line)
        said = [next(lines) for _ in range(5)]
    assert OWN in said
    assert any("reason" in line for line in said)
