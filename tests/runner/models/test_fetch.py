"""Weights from a hub that is slow, cut, broken, and by processes that are killed."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import COMMIT, Fault, HubServer, Repository, serving
from tests.runner.models.fetching import Fetching, kill_midway, resolved
from tests.waiting import wait_for

SHARD_BYTES = 512 * 1024
SHARDS = [f"model-{place:05}-of-00008.safetensors" for place in range(1, 9)]
TEXTS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
CONTENT = {name: random.Random(name).randbytes(SHARD_BYTES) for name in SHARDS}
FILES = TEXTS | CONTENT
ALL_BYTES = sum(map(len, FILES.values()))


@pytest.fixture
def hub() -> HubServer:
    return HubServer({"org/tiny": Repository(dict(FILES))})


@pytest.fixture
def endpoint(hub: HubServer) -> Iterator[str]:
    with serving(hub) as url:
        yield url


def check_whole(answer: dict[str, Any], expected: dict[str, bytes] = FILES) -> None:
    assert "error" not in answer, answer
    folder = Path(answer["path"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    size = sum(map(len, expected.values()))
    assert (answer["fetched"], answer["wanted"]) == (size, size)


def left_over(cache: Path) -> list[Path]:
    """Everything in the cache's blobs that is no whole file of the model."""
    blobs = cache / "models--org--tiny" / "blobs"
    whole = list(FILES.values())
    return [path for path in blobs.iterdir() if path.read_bytes() not in whole]


def test_what_is_needed_first_comes_first_and_few_at_a_time(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    hub.bytes_per_second = 4 * SHARD_BYTES
    order = [SHARDS[5], SHARDS[0], SHARDS[3], SHARDS[7], SHARDS[1]]
    answer = resolved(endpoint, tmp_path, "org/tiny", "", ",".join(order))
    check_whole(answer, TEXTS | {name: CONTENT[name] for name in order})
    # A file is asked for once three of those before it are the only ones on their way.
    asked = [download.name for download in hub.downloads]
    for place, name in enumerate(order, start=len(TEXTS)):
        assert abs(asked.index(name) - place) <= 3, asked
    assert hub.most_at_once == 4
    assert hub.listings == 1


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_kill_keeps_what_has_come(
    hub: HubServer, endpoint: str, tmp_path: Path, share: float
) -> None:
    cache = tmp_path / "cache"
    before = kill_midway(hub, share * ALL_BYTES, endpoint, cache)
    check_whole(resolved(endpoint, cache))
    again = hub.served_bytes() - before
    # What was on its way when it was killed is lost: what sockets hold.
    assert again <= (1 - share) * ALL_BYTES + 8 * 2**17
    assert any(download.first > 0 for download in hub.downloads)
    assert left_over(cache) == []


def test_killed_again_and_again_it_comes_to_an_end(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for _ in range(4):
        kill_midway(hub, hub.served_bytes() + SHARD_BYTES, endpoint, cache)
    check_whole(resolved(endpoint, cache))
    assert hub.served_bytes() < 1.5 * ALL_BYTES
    assert left_over(cache) == []


def test_a_file_that_came_whole_before_the_kill_is_not_asked_for(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    check_whole(resolved(endpoint, tmp_path))
    blob = (tmp_path / "models--org--tiny/snapshots" / COMMIT / SHARDS[0]).resolve()
    blob.rename(blob.with_name(blob.name + ".partial"))
    asked = len(hub.downloads)
    check_whole(resolved(endpoint, tmp_path))
    assert len(hub.downloads) == asked


def test_drops_and_busy_answers_are_tried_again(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    hub.faults = [
        Fault(SHARDS[0], cut_after=100_000, times=3),
        Fault(SHARDS[1], status=503),
        Fault(SHARDS[2], status=429, headers={"Retry-After": "1"}),
        Fault(SHARDS[3], cut_after=0, times=2),
        Fault("tokenizer.json", cut_after=1),
    ]
    check_whole(resolved(endpoint, tmp_path))
    firsts = [download.first for download in hub.downloads if download.name == SHARDS[0]]
    assert firsts == [0, 100_000, 200_000, 300_000]
    assert hub.served[SHARDS[0]] == SHARD_BYTES


def test_a_server_without_ranges_sends_the_file_anew(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    hub.faults = [
        Fault(SHARDS[0], cut_after=100_000, ignores_ranges=True),
        Fault(SHARDS[0], ignores_ranges=True),
    ]
    check_whole(resolved(endpoint, tmp_path))


def test_damaged_bytes_are_found_and_fetched_again(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    kill_midway(hub, SHARD_BYTES // 2, endpoint, tmp_path, files=SHARDS[0])
    partials = list((tmp_path / "models--org--tiny/blobs").glob("*.partial"))
    assert partials
    for partial in partials:
        partial.write_bytes(bytes(partial.stat().st_size))  # as a node without power leaves it
    check_whole(
        resolved(endpoint, tmp_path, "org/tiny", "", SHARDS[0]),
        TEXTS | {SHARDS[0]: CONTENT[SHARDS[0]]},
    )


def test_bytes_that_are_wrong_at_the_source_are_not_taken(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    resolved(endpoint, tmp_path, "org/tiny", "", "")
    hub.repositories["org/tiny"].files[SHARDS[0]] = bytes(SHARD_BYTES)
    answer = resolved(endpoint, tmp_path, "org/tiny", COMMIT, SHARDS[0])
    assert answer["error"] == f"model_name = 'org/tiny': {SHARDS[0]} came damaged twice"
    assert answer["kind"] == "ModelUnreachable"
    assert left_over(tmp_path) == []


def test_without_a_byte_it_is_given_up_and_goes_on_later(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    hub.faults = [Fault(SHARDS[0], cut_after=100_000), Fault(SHARDS[0], status=503, times=99)]
    answer = resolved(endpoint, tmp_path, patience_s=2)
    assert answer["kind"] == "ModelUnreachable"
    assert answer["error"] == (
        f"model_name = 'org/tiny': no byte for 2 s: {SHARDS[0]}: answered with 503"
    )
    hub.faults = []
    check_whole(resolved(endpoint, tmp_path))
    assert hub.served[SHARDS[0]] == SHARD_BYTES


def test_a_refusal_in_the_middle_is_final(hub: HubServer, endpoint: str, tmp_path: Path) -> None:
    resolved(endpoint, tmp_path, "org/tiny", "", "")
    hub.repositories["org/tiny"].access = "gated"
    answer = resolved(endpoint, tmp_path, "org/tiny", COMMIT)
    assert answer["kind"] == "ModelUnavailable"
    assert answer["error"].startswith("model_name = 'org/tiny': is gated (401): ")


def test_two_processes_fetch_each_file_once(hub: HubServer, endpoint: str, tmp_path: Path) -> None:
    hub.bytes_per_second = 2 * SHARD_BYTES
    ranks = [Fetching(endpoint, tmp_path) for _ in range(2)]
    for rank in ranks:
        check_whole(rank.answer)
    assert hub.served == {name: len(content) for name, content in FILES.items()}


def test_who_waits_goes_on_where_a_killed_one_stopped(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    hub.stops_after = ALL_BYTES // 2
    first = Fetching(endpoint, tmp_path, patience_s=300)
    try:
        hub.wait_until_stopped()
        second = Fetching(endpoint, tmp_path, patience_s=300)
        wait_for(lambda: hub.listings == 2, what="the second one has begun")
    finally:
        first.kill()
        hub.go_on()
    check_whole(second.answer)
    assert hub.served_bytes() < 1.4 * ALL_BYTES
    assert left_over(tmp_path) == []


def test_progress_is_logged_in_bytes(hub: HubServer, endpoint: str, tmp_path: Path) -> None:
    hub.bytes_per_second = SHARD_BYTES // 2
    fetching = Fetching(endpoint, tmp_path, log_each_s=0.5)
    check_whole(fetching.answer)
    lines = [line for line in fetching.log.splitlines() if "etch" in line]
    assert lines[0] == "fetching org/tiny: 0.0 of 4.2 MB (0%)"
    shares = [int(found.group(1)) for line in lines if (found := re.search(r"(\d+)%", line))]
    assert shares == sorted(shares)
    assert len(shares) > 3
    assert re.fullmatch(r"fetched org/tiny: 4\.2 MB in \d+\.\d s", lines[-1])


def test_partial_files_of_the_library_go(hub: HubServer, endpoint: str, tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    locks = tmp_path / ".locks" / "models--org--tiny"
    locks.mkdir(parents=True)
    (blobs / "aa.12345678.incomplete").write_bytes(b"left by a kill")
    (locks / "aa.lock").touch()
    old = blobs / "bb.partial"
    old.write_bytes(b"of a commit that nobody wants any more")
    os.utime(old, (0, 0))
    (locks / "bb.lock").touch()
    check_whole(resolved(endpoint, tmp_path))
    assert left_over(tmp_path) == []


def test_a_cache_that_the_library_made_serves_without_a_hub(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    check_whole(resolved(endpoint, tmp_path / "cache"))
    listing = tmp_path / "cache/models--org--tiny/listings" / f"{COMMIT}.json"
    listing.unlink()  # as the library leaves a cache
    answer = resolved("http://127.0.0.1:9", tmp_path / "cache", "org/tiny", COMMIT)
    assert {path.name for path in Path(answer["path"]).iterdir()} == set(FILES)


def test_the_library_finds_what_was_fetched(hub: HubServer, endpoint: str, tmp_path: Path) -> None:
    from huggingface_hub import snapshot_download

    folder = Path(resolved(endpoint, tmp_path)["path"])
    found = snapshot_download("org/tiny", cache_dir=tmp_path, local_files_only=True)
    assert Path(found).resolve() == folder.resolve()


def test_no_room_is_told_before_anything_is_fetched(
    hub: HubServer, endpoint: str, tmp_path: Path
) -> None:
    from runner.models.fetch import Fetcher, RemoteFile
    from runner.models.progress import FetchProgress

    def refuse(_: object) -> Any:
        raise AssertionError

    file = RemoteFile("a", endpoint, tmp_path / "blobs" / "a", tmp_path / "a.lock", size=2**60)
    with pytest.raises(Exception, match=r"1,152,921,504,606,846,976 bytes are to be fetched and "):
        Fetcher("org/tiny", {}, refuse, FetchProgress(), 8).fetch([file])
    assert hub.downloads == []
