"""Metrics for Prometheus, from what the parts count and the ledger holds; named harvester_*.

Labels are bounded: statuses that Lune does not document are one, receivers are those of the
configuration, and no account, order or text that was served is ever a label. Moments are exported
as timestamps, so that an age goes on growing when nothing moves any more.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from harvester import __version__
from harvester.app import App
from harvester.domain.errors import HarvesterError
from harvester.domain.lifecycle import STATUSES, AnomalyKind
from harvester.domain.orders import CertificateState
from harvester.ledger.database import Database
from harvester.ledger.outbox import Backlog, read_backlogs
from harvester.ledger.statistics import Statistics, last_event, read_statistics, stored_since
from harvester.liveness import Check, Liveness
from harvester.web.health import Health, last_good_sweep, oldest_good_sweep
from harvester.web.lune_webhook import OUTCOMES, LuneWebhooks

OTHER: Final = "other"
"""Stands for every status that Lune does not document, so that series stay few."""

_FRESH_SECONDS: Final = 5.0
_LONGEST_WAIT: Final = 3.0
_SHARE: Final = 0.05
"""Of the time, that counting the ledger may take: the larger it is, the longer counts last."""

_Labels = TypeVar("_Labels", bound=tuple[str, ...])
"""The values of a series' labels."""


class Metrics(Collector):
    """Everything there is to scrape, in a registry of its own.

    ``refresh`` before each scrape: it reads the ledger, by ``reading``, unless it did so a moment
    ago. Without ``liveness`` and ``health``, as in a drain, nothing is said of those; without
    ``webhooks`` none are taken.
    """

    def __init__(
        self,
        app: App,
        reading: Database,
        liveness: Liveness | None = None,
        health: Health | None = None,
        webhooks: LuneWebhooks | None = None,
    ) -> None:
        self._app = app
        self._reading = reading
        self._liveness = liveness
        self._health = health
        self._webhooks = webhooks
        self._reading_now: asyncio.Task[None] | None = None
        self._fresh_until = 0.0
        self._statistics: Statistics | None = None
        self._backlogs: Mapping[str, Backlog] = {}
        self._last_event: int | None = None
        self._free: dict[str, int] = {}
        self._checks: Sequence[Check] = ()
        self.registry = CollectorRegistry()
        measured = app.context.measurements
        for one in (self, measured.certificate_delays, measured.ledger_writes, measured.sweeps):
            self.registry.register(one)
        ProcessCollector(registry=self.registry)

    async def begin(self) -> None:
        """Count certificates from here on; those stored before have no part in the histogram."""
        self._last_event = await last_event(self._reading)

    async def refresh(self) -> None:
        """Read the ledger and the disks anew, if what was read is older than it may be.

        A reading that takes long goes on by itself, and what was read before it stands meanwhile.
        """
        read, _ = await asyncio.wait({self._current()}, timeout=_LONGEST_WAIT)
        for task in read:
            task.result()  # a fault of ours is not to be served as metrics

    async def write(self, path: Path) -> None:
        """Write everything to a file for node_exporter's textfile collector, whole or not at all.

        Raises ``OSError``.
        """
        await self._current()
        await asyncio.to_thread(write_to_textfile, str(path), self.registry)

    async def close(self) -> None:
        """End a reading that is under way."""
        if self._reading_now is not None:
            self._reading_now.cancel()
            await asyncio.wait({self._reading_now})

    def _current(self) -> asyncio.Task[None]:
        """Return the reading that is under way or good enough, else begin one."""
        task = self._reading_now
        if task is None or (task.done() and time.monotonic() >= self._fresh_until):
            task = self._reading_now = asyncio.create_task(self._measure(), name="metrics")
        return task

    async def _measure(self) -> None:
        began = time.monotonic()
        try:
            await self._read()
        finally:
            ended = time.monotonic()
            self._fresh_until = ended + max(_FRESH_SECONDS, (ended - began) / _SHARE)

    async def _read(self) -> None:
        self._checks = await self._health.ready() if self._health is not None else ()
        try:
            async with self._reading.read() as connection:
                self._statistics = await read_statistics(connection, self._app.context.clock())
            self._backlogs = await read_backlogs(self._reading)
            await self._observe_delays()
        except HarvesterError:
            self._statistics = None  # no count rather than an old one
            self._backlogs = {}
        self._free = {}
        with suppress(HarvesterError, OSError):  # the checks of ledger and archive say why
            self._free["ledger"] = _free_bytes(self._app.database.path)
            self._free["archive"] = await self._app.archive.free_bytes()

    async def _observe_delays(self) -> None:
        while self._last_event is not None:
            last, delays = await stored_since(self._reading, self._last_event)
            for seconds in delays:
                self._app.context.measurements.certificate_delays.observe(seconds)
            if last == self._last_event:
                return
            self._last_event = last

    def collect(self) -> Iterator[Metric]:
        """Yield what the last refresh read and what the parts count by themselves."""
        versions = (__version__, platform.python_version(), sqlite3.sqlite_version)
        labels = ["version", "python", "sqlite"]
        yield _gauge("build_info", "What runs; always 1.", {versions: 1}, labels)
        yield from self._requests()
        yield from self._disks()
        if self._webhooks is not None:
            text = "Requests to take webhooks, by what became of them."
            counts = {(outcome,): self._webhooks.outcomes[outcome] for outcome in OUTCOMES}
            yield _counter("webhooks", text, counts, ["outcome"])
        yield _gauge(
            "oldest_good_sweep_seconds",
            "How long ago the last good sweep of an account may be before that is too long.",
            {(): oldest_good_sweep(self._app).total_seconds()},
        )
        if self._statistics is not None:
            yield from _of_ledger(self._statistics)
            yield from _of_outbox(self._backlogs)
            last = last_good_sweep(self._app, self._statistics)
            if last is not None:
                text = "When the account that waits longest had its last good sweep."
                yield _gauge("last_sweep_timestamp_seconds", text, {(): last.timestamp()})
        if self._liveness is not None:
            text = "How late the event loop was at the last look."
            yield _gauge("event_loop_lag_seconds", text, {(): self._liveness.lag})
            text = "How late the event loop was at most since the start."
            yield _gauge("event_loop_longest_lag_seconds", text, {(): self._liveness.longest_lag})
        if self._checks:
            text = "Whether what the work needs is there, by check."
            values = {(check.name,): check.cause is None for check in self._checks}
            yield _gauge("ready", text, values, ["check"])

    def _requests(self) -> Iterator[Metric]:
        limiter = self._app.rate_limiter
        text = "Requests to Lune, by endpoint and what came of them."
        counts = self._app.lune.request_counts
        yield _counter("lune_requests", text, counts, ["endpoint", "outcome"])
        text = "How long requests waited for their turn."
        yield _counter("rate_limiter_wait_seconds", text, {(): limiter.waited_seconds})
        text = "Requests a second allowed by the configuration."
        yield _gauge("rate_limit", text, {(): limiter.rate})
        text = "Requests a second let through now: less than the limit for a while after a 429."
        yield _gauge("current_rate", text, {(): limiter.current_rate})
        text = "Pauses of all requests that a 429 asked for."
        yield _counter("rate_limiter_pauses", text, {(): limiter.pauses})

    def _disks(self) -> Iterator[Metric]:
        path = self._app.database.path
        sizes = {("ledger",): _size(path), ("wal",): _size(path.with_name(path.name + "-wal"))}
        yield _gauge("ledger_bytes", "Size of the ledger's files.", sizes, ["file"])
        free = {(disk,): count for disk, count in self._free.items()}
        yield _gauge("disk_free_bytes", "What the disk still takes from us.", free, ["disk"])


def _of_ledger(found: Statistics) -> Iterator[Metric]:
    orders, entered = Counter(dict.fromkeys((*STATUSES, OTHER), 0)), dict[str, float]()
    for status, count in found.by_status.items():
        name = status if status in STATUSES else OTHER
        at = found.entered_at[status].timestamp()
        orders[name] += count
        entered[name] = min(at, entered.get(name, at))
    yield _gauge("orders", "Orders in the ledger, by status.", _labelled(orders), ["status"])
    yield _gauge(
        "oldest_order_timestamp_seconds",
        "When the order that stands longest in a status was seen to enter it.",
        _labelled(entered),
        ["status"],
    )
    states = {(state,): found.by_certificate.get(state, 0) for state in (*CertificateState, "none")}
    yield _gauge("certificates", "Orders, by what became of their certificate.", states, ["state"])
    # While none is missing this is now: an age of nothing, and no gap in a graph.
    since = found.owed_since.timestamp() if found.owed_since else time.time()
    yield _gauge(
        "oldest_missing_certificate_timestamp_seconds",
        "Since when the longest owed certificate of a complete order is owed; now without one.",
        {(): since},
    )
    yield _gauge("due_orders", "Orders whose next check or attempt is due.", {(): found.due})
    yield _gauge("parked_accounts", "Accounts Lune refuses.", {(): found.parked_accounts})
    text = "Things Lune listed that are no readable order."
    yield _gauge("rejected_orders", text, {(): found.rejected_orders})
    kinds = {(str(kind),): found.anomalies.get(kind, 0) for kind in AnomalyKind}
    text = "Answers of Lune that no order's chain can hold, by kind, over the ledger's life."
    yield _counter("anomalies", text, kinds, ["kind"])


def _of_outbox(backlogs: Mapping[str, Backlog]) -> Iterator[Metric]:
    text = "Events that the receiver wants and has not accepted yet."
    depths = {(name,): backlog.depth for name, backlog in backlogs.items()}
    yield _gauge("outbox_events", text, depths, ["receiver"])
    # Without one this is now, as above.
    now = time.time()
    text = "When the oldest event happened that the receiver has not accepted yet; now without one."
    since = {
        (name,): backlog.since.timestamp() if backlog.since is not None else now
        for name, backlog in backlogs.items()
    }
    yield _gauge("outbox_oldest_event_timestamp_seconds", text, since, ["receiver"])


def _gauge(
    name: str, text: str, values: Mapping[_Labels, float], labels: Sequence[str] = ()
) -> Metric:
    family = GaugeMetricFamily(f"harvester_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _counter(
    name: str, text: str, values: Mapping[_Labels, float], labels: Sequence[str] = ()
) -> Metric:
    family = CounterMetricFamily(f"harvester_{name}", text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(label_values, value)
    return family


def _labelled(values: Mapping[str, float]) -> Mapping[tuple[str], float]:
    return {(name,): value for name, value in values.items()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize
