"""What a stage does to its cache while it prepares a part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contract.specs import GroupSpec, RankPart, StageSpec
from runner.models.progress import FetchProgress
from runner.stage.model.decode_graphs import SWITCH
from runner.stage.process.load import PreparedPart, describe, load, prepare
from runner.transport.control import Prepare
from tests.small_models import LAYERS, make_small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("model")
    make_small_model("llama", model)
    return model


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A model of another spec, in the cache."""
    snapshot = tmp_path / "models--org--old" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def prepared(
    folder: Path,
    cache: Path,
    *,
    in_force: bool = False,
    held: PreparedPart | None = None,
    for_two: bool = True,
) -> PreparedPart:
    stage = StageSpec("d", 0, memory_bytes=2**31, model_cache=str(cache), cache_for_two=for_two)
    spec = GroupSpec("d", str(folder), (RankPart((0, LAYERS)),))
    return prepare(stage, Prepare(spec, "", 1, in_force), FetchProgress(), held)


def test_a_cache_for_two_models_has_room_made_in_it(
    folder: Path, left: Path, tmp_path: Path
) -> None:
    prepared(folder, tmp_path, in_force=True)
    assert not left.exists()


def test_what_is_computed_with_stays(folder: Path, left: Path, tmp_path: Path) -> None:
    held = prepared(folder, tmp_path)
    # Nothing is held yet, and what the group serves may be what lies there.
    assert left.exists()
    prepared(folder, tmp_path, held=held)
    assert not left.exists()


def test_any_other_cache_keeps_what_it_has(folder: Path, left: Path, tmp_path: Path) -> None:
    prepared(folder, tmp_path, in_force=True, for_two=False)
    assert left.exists()


@pytest.mark.parametrize(("value", "graphs"), [(None, False), ("0", False), ("1", True)])
def test_decode_graphs_are_off_unless_the_environment_says_so(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
    graphs: bool,
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    assert load(StageSpec("d", 0), prepared(folder, tmp_path)).has_graphs is graphs


def test_the_pool_is_what_requests_can_fill(folder: Path, tmp_path: Path) -> None:
    stage, part = StageSpec("d", 0, memory_bytes=2**31), prepared(folder, tmp_path)
    model = load(stage, part)
    info = describe(stage, part, model)
    fillable = part.spec.max_concurrent_requests * model.max_positions
    assert model._pool.positions == fillable < info.kv_tokens
    small = replace(part, spec=replace(part.spec, max_concurrent_requests=2, max_model_len=100))
    describe(stage, small, model)
    assert model._pool.positions == 200
