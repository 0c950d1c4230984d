"""Figures as metric families; names begin with harvester_."""

from __future__ import annotations

import platform
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from harvester import __version__
from harvester.domain.lifecycle import AnomalyKind
from harvester.ledger.outbox import Backlog
from harvester.ledger.statistics import Figures

Labelled = Mapping[Any, float]
"""Values by their labels' values, each key a tuple of texts."""


def build() -> Iterator[Metric]:
    """Tell what runs."""
    versions = (__version__, platform.python_version(), sqlite3.sqlite_version)
    yield gauge(
        "build_info", "What runs; always 1.", {versions: 1}, ["version", "python", "sqlite"]
    )


def of_ledger(figures: Figures) -> Iterator[Metric]:
    """Tell how many there are of what, and since when the longest standing one stands there."""
    statuses = {(status,): count for status, count in figures.by_status.items()}
    yield gauge("orders", "Orders in the ledger, by status.", statuses, ["status"])
    yield gauge(
        "oldest_order_timestamp_seconds",
        "When the order that stands longest in a status was seen to enter it.",
        {(status,): at.timestamp() for status, at in figures.since_by_status.items()},
        ["status"],
    )
    states = {(state,): count for state, count in figures.by_certificate.items()}
    yield gauge("certificates", "Orders, by what became of their certificate.", states, ["state"])
    # While none is missing this is now: an age of nothing, and no gap in a graph.
    since = figures.missing_since.timestamp() if figures.missing_since else time.time()
    yield gauge(
        "oldest_missing_certificate_timestamp_seconds",
        "Since when the longest owed certificate of a complete order is owed; now without one.",
        {(): since},
    )
    yield gauge("due_orders", "Orders whose next look or try is due.", {(): figures.overdue})
    yield gauge("parked_accounts", "Accounts Lune refuses.", {(): figures.parked_accounts})
    text = "Things Lune listed that are no readable order."
    yield gauge("set_aside", text, {(): figures.set_aside})
    kinds = {(str(kind),): figures.anomalies.get(kind, 0) for kind in AnomalyKind}
    text = "Answers of Lune that no order's chain can hold, by kind, over the ledger's life."
    yield counter("anomalies", text, kinds, ["kind"])


def of_outbox(backlogs: Mapping[str, Backlog]) -> Iterator[Metric]:
    """Tell what receivers do not have yet; their names are the configuration's."""
    text = "Events that the receiver wants and has not taken yet."
    depths = {(name,): backlog.depth for name, backlog in backlogs.items()}
    yield gauge("outbox_events", text, depths, ["receiver"])
    # Without one this is now, as above.
    now = time.time()
    text = "When the oldest event happened that the receiver has not taken yet; now without one."
    since = {
        (name,): backlog.since.timestamp() if backlog.since is not None else now
        for name, backlog in backlogs.items()
    }
    yield gauge("outbox_oldest_event_timestamp_seconds", text, since, ["receiver"])


def gauge(name: str, text: str, values: Labelled, labels: Sequence[str] = ()) -> Metric:
    """Make a gauge."""
    return _filled(GaugeMetricFamily(f"harvester_{name}", text, labels=labels), values)


def counter(name: str, text: str, values: Labelled, labels: Sequence[str] = ()) -> Metric:
    """Make a counter."""
    return _filled(CounterMetricFamily(f"harvester_{name}", text, labels=labels), values)


def _filled(family: Any, values: Labelled) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    metric: Metric = family
    return metric
