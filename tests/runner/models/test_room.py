"""A cache with room for two models: what nobody asks for goes, whatever else lies there stays."""

from __future__ import annotations

from pathlib import Path

from runner.models.room import forget_other_models
from tests.hub_server import HubServer, Repository, serving
from tests.runner.models.fetching import resolved

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
}
OTHER_COMMIT = "f" * 40


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name[0] != "."}


def test_of_several_models_the_wanted_ones_stay(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub = HubServer({f"org/{name}": Repository(dict(FILES)) for name in "abc"})
    with serving(hub) as url:
        served, wanted, old = (
            resolved(url, cache, f"org/{name}", "", "all")["path"] for name in "abc"
        )
        web = resolved("", cache, f"{url}/org/a/resolve/main", "", "all")["path"]
    made = cache / "small-0123456789ab"
    made.mkdir()
    (made / "manifest.json").write_text("{}")
    mine = cache / "mine" / "config.json"
    mine.parent.mkdir()
    mine.write_text("{}")
    forget_other_models(cache, [Path(served), Path(wanted)])
    assert contents(served) == contents(wanted) == FILES
    assert [Path(path).exists() for path in (old, web, made, mine)] == [False, False, False, True]
    assert not (cache / "models--org--c").exists()


def test_of_two_commits_that_share_files_the_shared_ones_stay(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    newer = FILES | {"model.safetensors": b"other weights"}
    hub = HubServer({"org/a": Repository(dict(FILES))})
    with serving(hub) as url:
        first = resolved(url, cache, "org/a", "", "all")["path"]
        hub.repositories["org/a"] = Repository(newer, commit=OTHER_COMMIT)
        second = resolved(url, cache, "org/a", OTHER_COMMIT, "all")["path"]
        blobs = cache / "models--org--a" / "blobs"
        assert len([*blobs.iterdir()]) == 4
        forget_other_models(cache, [Path(second)])
        assert contents(second) == newer
        assert len([*blobs.iterdir()]) == 3
        # Who wants the former one again fetches what went.
        hub.repositories["org/a"] = Repository(dict(FILES))
        assert resolved(url, cache, "org/a", "", "all")["path"] == first
    assert contents(first) == FILES


def test_of_what_a_web_server_had_the_wanted_content_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub = HubServer({"a/folder": Repository(dict(FILES))})
    with serving(hub) as url:
        address = f"{url}/a/folder/resolve/main"
        first = resolved("", cache, address, "", "all")["path"]
        newer = FILES | {"config.json": b'{"model_type": "phi3"}'}
        hub.repositories["a/folder"] = Repository(newer)
        second = resolved("", cache, address, "", "all")["path"]
    assert first != second
    forget_other_models(cache, [Path(second)])
    assert not Path(first).exists()
    assert contents(second) == newer


def test_a_cache_that_is_not_there_yet_is_no_fault(tmp_path: Path) -> None:
    forget_other_models(tmp_path / "none", [])
