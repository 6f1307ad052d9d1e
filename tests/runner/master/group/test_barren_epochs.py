"""How long the next try waits."""

from __future__ import annotations

from runner.master.group.barren_epochs import BarrenEpochs


def lose(barren: BarrenEpochs) -> float:
    barren.begin()
    return barren.lost()


def test_pauses_grow_from_the_third_on() -> None:
    barren = BarrenEpochs()
    assert [lose(barren) for _ in range(9)] == [0, 0, 10, 20, 40, 80, 160, 300, 300]
    assert all(lose(barren) == 300 for _ in range(2000))


def test_progress_starts_the_count_anew() -> None:
    barren = BarrenEpochs()
    assert [lose(barren) for _ in range(4)][-1] == 20
    barren.begin()
    barren.progressed()
    assert barren.lost() == 0
    assert [lose(barren) for _ in range(3)] == [0, 0, 10]


def test_what_is_excused_changes_nothing() -> None:
    barren = BarrenEpochs()
    assert [lose(barren) for _ in range(3)][-1] == 10
    barren.begin()
    barren.excuse()
    assert barren.lost() == 0
    assert lose(barren) == 20
