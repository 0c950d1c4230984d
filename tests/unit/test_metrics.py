"""Metrics of the ledger: every series is there at zero, and statuses are few whatever is served."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from prometheus_client.metrics_core import Metric

from harvester.domain.lifecycle import STATUSES
from harvester.ledger.statistics import Statistics
from harvester.web.metrics import OTHER, _of_ledger

HOUR = timedelta(hours=1)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def counted(**found: object) -> Statistics:
    nothing: dict[str, object] = {
        "by_status": {},
        "entered_at": {},
        "by_certificate": {},
        "followed": 0,
        "due": 0,
        "owed": 0,
        "owed_since": None,
        "next_check_at": None,
        "anomalies": {},
        "rejected_orders": 0,
        "accounts": (),
    }
    return Statistics(**nothing | found)  # type: ignore[arg-type] # as each test names them


def values(found: Statistics, name: str) -> dict[str, float]:
    """Return the values of a series with one label, by that."""
    metrics: dict[str, Metric] = {one.name: one for one in _of_ledger(found)}
    return {
        "".join(sample.labels.values()): sample.value
        for sample in metrics[f"harvester_{name}"].samples
    }


def test_an_empty_ledger_has_every_status_and_state_at_zero() -> None:
    empty = counted()
    assert values(empty, "orders") == dict.fromkeys((*STATUSES, OTHER), 0)
    states = ("owed", "stored", "failed", "none")
    assert values(empty, "certificates") == dict.fromkeys(states, 0)
    assert set(values(empty, "anomalies").values()) == {0}
    assert values(empty, "oldest_order_timestamp_seconds") == {}


def test_statuses_that_lune_does_not_document_are_one() -> None:
    found = counted(
        by_status={"paid": 2, "pooled": 1, "other": 1, "evil\n": 3},
        entered_at={"paid": NOW, "pooled": NOW + 2 * HOUR, "other": NOW + HOUR, "evil\n": NOW},
    )
    orders = {status: count for status, count in values(found, "orders").items() if count}
    assert orders == {"paid": 2, OTHER: 5}
    entered = values(found, "oldest_order_timestamp_seconds")
    assert entered == {"paid": NOW.timestamp(), OTHER: NOW.timestamp()}


def test_what_is_owed_since_when_is_shown_and_now_when_nothing_is() -> None:
    name = "oldest_missing_certificate_timestamp_seconds"
    assert values(counted(owed_since=NOW), name) == {"": NOW.timestamp()}
    before = datetime.now(UTC).timestamp()
    assert values(counted(), name)[""] >= before
