"""Which status may follow which: the whole table, and what holds for any run of statuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.lifecycle import (
    STATUSES,
    TERMINAL,
    Anomaly,
    AnomalyKind,
    Moved,
    Unchanged,
    is_known,
    is_open,
    observe,
)

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)

# Down: the recorded status. Across: the served one. `late` comes after the end.
TABLE = """
.         received placed paid  retiring complete cancelled failed
received  same     move   move  move     move     move      move
placed    back     same   move  move     move     move      move
paid      back     back   same  move     move     move      move
retiring  back     back   back  same     move     move      move
complete  late     late   late  late     same     late      late
cancelled late     late   late  late     late     same      late
failed    late     late   late  late     late     late      same
"""

HEADER, *ROWS = (line.split() for line in TABLE.strip().splitlines())
PAIRS = [
    (recorded, served, outcome)
    for recorded, *outcomes in ROWS
    for served, outcome in zip(HEADER[1:], outcomes, strict=True)
]

UNKNOWN = ("", "pending", "Paid", "paid ", "complete\n", "completed", "canceled")

served_statuses = st.one_of(st.sampled_from(STATUSES), st.sampled_from(UNKNOWN), st.text())


def test_the_table_is_about_every_documented_status() -> None:
    assert HEADER[1:] == [row[0] for row in ROWS] == list(STATUSES)
    assert len(PAIRS) == 49


@pytest.mark.parametrize(("recorded", "served", "outcome"), PAIRS)
def test_every_pair_of_documented_statuses_is_judged_as_the_table_says(
    recorded: str, served: str, outcome: str
) -> None:
    expected = {
        "same": Unchanged(served),
        "move": Moved(recorded, served, AT),
        "back": Anomaly(recorded, served, AnomalyKind.BACKWARD, AT),
        "late": Anomaly(recorded, served, AnomalyKind.AFTER_THE_END, AT),
    }
    assert observe(recorded, served, AT) == expected[outcome]


@pytest.mark.parametrize("served", [*STATUSES, *UNKNOWN])
def test_an_order_seen_for_the_first_time_moves_from_nothing(served: str) -> None:
    assert observe(None, served, AT) == Moved(None, served, AT)


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("known", STATUSES)
def test_an_unknown_status_is_moved_to_from_any_open_one(known: str, unknown: str) -> None:
    judged = observe(known, unknown, AT)
    if known in TERMINAL:
        assert judged == Anomaly(known, unknown, AnomalyKind.AFTER_THE_END, AT)
    else:
        assert judged == Moved(known, unknown, AT)


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize("served", [*STATUSES, "another"])
def test_an_unknown_status_can_be_left_for_any_other(unknown: str, served: str) -> None:
    assert observe(unknown, served, AT) == Moved(unknown, served, AT)


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_an_unknown_status_served_again_is_no_move(unknown: str) -> None:
    assert observe(unknown, unknown, AT) == Unchanged(unknown)


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_an_unknown_status_is_not_known_and_still_open(unknown: str) -> None:
    assert not is_known(unknown)
    assert is_open(unknown)


def test_only_the_three_ends_are_not_open() -> None:
    assert {status for status in STATUSES if not is_open(status)} == {
        "complete",
        "cancelled",
        "failed",
    }
    assert all(is_known(status) for status in STATUSES)


def follow(served: list[str]) -> tuple[str | None, list[Moved], list[Anomaly]]:
    """Observe an order once for each served status; return its status, its moves, its anomalies."""
    recorded: str | None = None
    moves: list[Moved] = []
    anomalies: list[Anomaly] = []
    for number, status in enumerate(served):
        judged = observe(recorded, status, AT + timedelta(minutes=number))
        if isinstance(judged, Moved):
            moves.append(judged)
            recorded = judged.after
        elif isinstance(judged, Anomaly):
            assert (judged.recorded, judged.served) == (recorded, status)
            anomalies.append(judged)
        else:
            assert judged.status == recorded == status
    return recorded, moves, anomalies


@given(st.lists(served_statuses, min_size=1))
def test_any_run_of_statuses_makes_a_chain_without_gaps(served: list[str]) -> None:
    recorded, moves, _ = follow(served)
    assert moves[0].before is None
    assert all(after.before == before.after for before, after in pairwise(moves))
    assert all(move.before != move.after for move in moves)
    assert moves[-1].after == recorded


@given(st.lists(served_statuses, min_size=1))
def test_nothing_in_a_chain_was_not_served(served: list[str]) -> None:
    recorded, moves, anomalies = follow(served)
    rest = iter(served)
    assert all(move.after in rest for move in moves)  # in the order it was served in
    assert recorded in served
    assert len(moves) + len(anomalies) <= len(served)


@given(st.lists(served_statuses, min_size=1))
def test_an_order_that_ended_never_moves_again(served: list[str]) -> None:
    _, moves, _ = follow(served)
    assert all(is_open(move.after) for move in moves[:-1])


@given(st.lists(st.sampled_from(STATUSES), min_size=1))
def test_documented_statuses_never_move_backward(served: list[str]) -> None:
    _, moves, _ = follow(served)
    numbers = [STATUSES.index(move.after) for move in moves]
    assert numbers == sorted(set(numbers))
