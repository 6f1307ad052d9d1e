"""What became of the group, over the lives of its masters."""

from __future__ import annotations

from dataclasses import replace

from runner.master.group.history import EVENTS, History
from runner.transport.control import GroupMemory, Remember, encode

START = 1_000_000.0


def serving(ranks: int = 2, memory: GroupMemory | None = None) -> History:
    """A master's history whose stages A, B, ... have just formed a group, 10 s after its start."""
    history = History(START)
    for rank in range(ranks):
        history.joined(rank, "ABCD"[rank], memory, 0.0, START)
    history.trying()
    history.formed(START + 10)
    return history


def texts(history: History) -> list[object]:
    return [event["text"] for event in history.describe_events()]


def test_the_first_start_is_an_event() -> None:
    history = History(START)
    assert texts(history) == ["started, not ready yet"]
    history = serving()
    [event] = history.describe_events()
    assert event == {
        "at": START,
        "kind": "start",
        "rank": None,
        "text": "started, ready after 10.0 s",
        "duration_s": 10.0,
    }


def test_a_killed_rank_has_its_length() -> None:
    history = serving()
    history.rank_lost(1, "gone", START + 20)
    history.epoch_lost("rank 1: the control connection", START + 20)
    assert texts(history)[1:] == ["rank 1 gone, not back yet"]
    history.joined(1, "another", None, 0.0, START + 22)
    assert texts(history)[1:] == ["rank 1 killed, not back yet"]
    history.trying()
    history.formed(START + 25.2)
    assert texts(history)[1:] == ["rank 1 killed, back after 5.2 s"]
    assert history.describe_events()[1]["rank"] == 1
    assert history.restarts(2) == (0, 1)
    assert (history.epoch, history.formations, history.losses) == (2, 2, 1)


def test_how_a_rank_was_lost_and_came_back() -> None:
    for how, comes, text in (
        ("gone", "B", "rank 1 cut off"),
        ("silent", "B", "rank 1 silent"),
        ("silent", "another", "rank 1 hung and was restarted"),
        ("was asked to end", "another", "rank 1 was asked to end"),
    ):
        history = serving()
        history.rank_lost(1, how, START + 20)
        history.joined(1, comes, None, 0.0, START + 21)
        history.formed(START + 22)
        assert texts(history)[1:] == [f"{text}, back after 2.0 s"]


def test_the_neighbour_that_notices_first_is_no_event_of_its_own() -> None:
    history = serving()
    history.epoch_lost("rank 0: its link broke", START + 20)
    assert texts(history)[1:] == ["epoch 1 lost (rank 0: its link broke), not back yet"]
    history.rank_lost(1, "gone", START + 20.5)
    history.rank_lost(1, "gone", START + 21)  # its process ended once more while it loaded
    assert texts(history)[1:] == ["rank 1 gone, not back yet"]
    history.formed(START + 25)
    assert texts(history)[1:] == ["rank 1 gone, back after 5.0 s"]


def test_an_epoch_that_was_lost_with_every_rank_there() -> None:
    history = serving()
    history.epoch_lost("step 7 has not come back", START + 20)
    history.gave_up(3, START + 20)
    history.formed(START + 30)
    assert texts(history)[1:] == [
        "epoch 1 lost (step 7 has not come back), back after 10.0 s",
        "3 groups in a row failed, back after 10.0 s",
    ]


def test_a_new_master_goes_on_where_the_last_one_was() -> None:
    first = serving()
    first.rank_lost(1, "gone", START + 20)
    first.joined(1, "another", None, 0.0, START + 21)
    first.epoch_lost("rank 1", START + 21)
    first.trying()
    first.replays = 2
    first.formed(START + 22)
    told = first.totals()

    second = History(START + 100)
    assert second.epoch == 0
    second.joined(0, "A", told, 4.0, START + 101)
    assert second.epoch == 2
    assert texts(second)[2:] == ["the master restarted, not back yet"]
    second.joined(1, "a third", None, 0.0, START + 102)  # died with the master
    second.trying()
    second.formed(START + 103)
    assert texts(second) == [
        "started, ready after 10.0 s",
        "rank 1 killed, back after 2.0 s",
        "the master restarted, back after 6.0 s",
    ]
    totals = second.totals()
    assert (totals.epoch, totals.formations, totals.losses, totals.replays) == (3, 3, 1, 2)
    assert totals.restarts == (0, 2)
    # Prometheus takes a jump up for what happened just now.
    assert (second.formations, second.losses, second.replays) == (1, 0, 0)
    assert second.restarts(2) == (0, 1)
    assert totals.version > told.version


def test_the_newest_memory_counts_whichever_stage_comes_first() -> None:
    first = serving()
    older = first.totals()
    first.epoch_lost("a link broke", START + 20)
    first.trying()
    newer = first.totals()
    for memories in ((older, newer), (newer, older)):
        second = History(START + 100)
        for rank, memory in enumerate(memories):
            second.joined(rank, "AB"[rank], memory, 1.0, START + 100)
        assert second.epoch == 2
        assert second.restarts(2) == (0, 0)
        assert second.totals().losses == 1
        second.formed(START + 101)
        assert texts(second)[1:] == [
            "epoch 1 lost (a link broke), back after 81.0 s",
            "the master restarted, back after 2.0 s",
        ]


def test_a_stage_that_dials_again_tells_the_master_nothing_new() -> None:
    history = serving()
    told = history.totals()
    history.rank_lost(0, "gone", START + 20)
    history.joined(0, "A", told, 3.0, START + 23)
    history.formed(START + 24)
    assert texts(history)[1:] == ["rank 0 cut off, back after 4.0 s"]
    assert history.totals().formations == 2


def test_memory_that_is_not_whole_is_none_and_that_of_other_ranks_counts() -> None:
    told = serving(ranks=3).totals()
    history = History(START)
    history.joined(0, "A", replace(told, restarts=(0,)), 0.0, START)
    assert history.epoch == 0
    history.joined(0, "A", told, 0.0, START)
    assert history.epoch == 1
    history.joined(4, "E", None, 0.0, START)
    assert history.totals().instances == ("A", "B", "C", "", "E")


def test_what_is_remembered_is_bounded() -> None:
    history = serving(ranks=4)
    for turn in range(3 * EVENTS):
        history.epoch_lost("é" * 10_000, START + turn)
        history.formed(START + turn)
    events = history.describe_events()
    assert len(events) == EVENTS
    assert events[-1]["at"] == START + 3 * EVENTS - 1
    encode(Remember(history.totals()))  # within the bound of a control message
