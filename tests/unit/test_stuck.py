from __future__ import annotations

from datetime import timedelta

from harvester.domain.schedule import StatusDuration
from harvester.domain.stuck import ENOUGH, Basis, bounds

HOUR = 3600.0


def durations(status: str, *hours: float, ended: bool = True) -> list[StatusDuration]:
    return [StatusDuration(status, one * HOUR, ended) for one in hours]


def test_a_configured_bound_outweighs_what_was_seen() -> None:
    found = bounds({"paid": timedelta(days=2)}, durations("paid", *range(1, 100)))
    assert (found["paid"].after, found["paid"].basis) == (timedelta(days=2), Basis.CONFIGURED)


def test_a_bound_is_learned_from_enough_durations_and_assumed_before() -> None:
    few = bounds({}, durations("paid", *[1.0] * (ENOUGH - 1)))
    assert few["paid"].basis is Basis.ASSUMED
    enough = bounds({}, durations("paid", *[1.0] * ENOUGH))
    assert (enough["paid"].after, enough["paid"].basis) == (timedelta(hours=3), Basis.LEARNED)
    assert enough["placed"].basis is Basis.ASSUMED


def test_one_odd_duration_and_those_that_go_on_do_not_move_a_learned_bound() -> None:
    usual = [10.0] * 99
    found = bounds(
        {}, durations("paid", *usual, 5000.0) + durations("paid", *[9000.0] * 50, ended=False)
    )
    assert found["paid"].after == timedelta(hours=30)


def test_a_learned_bound_is_an_hour_at_least() -> None:
    found = bounds({}, durations("received", *[0.001] * ENOUGH))
    assert found["received"].after == timedelta(hours=1)


def test_every_open_status_that_lune_documents_has_a_bound() -> None:
    assert set(bounds({}, [])) == {"received", "placed", "paid", "retiring"}
