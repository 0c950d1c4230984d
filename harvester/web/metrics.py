"""Metrics for Prometheus, from plain figures that the parts keep; names begin with harvester_.

Labels are bounded: statuses that Lune does not document are one, receivers are those of the
configuration, and no account, order or text that was served is ever a label. Moments are exported
as timestamps, so that an age goes on growing when nothing moves any more.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Histogram, write_to_textfile
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.errors import HarvesterError
from harvester.domain.events import EventFilter
from harvester.domain.orders import Account
from harvester.harvest.reports import SweepReport
from harvester.harvest.sweep import Sweep
from harvester.ledger.database import Database
from harvester.ledger.outbox import Backlog, backlogs
from harvester.ledger.statistics import Figures, arrivals, last_arrival, last_sweep, measure
from harvester.lune import Pacer
from harvester.web.health import Check, oldest_good_sweep
from harvester.web.lune_webhook import OUTCOMES
from harvester.web.metric_families import build, counter, gauge, of_ledger, of_outbox

T = TypeVar("T")

_FRESH_SECONDS: Final = 5.0
_LONGEST_WAIT: Final = 3.0
_SHARE: Final = 0.05
"""Of the time, that counting the ledger may take: the larger it is, the longer figures last."""

_DELAYS: Final = (1, 5, 15, 60, 300, 900, 3600, 21_600, 86_400, 259_200, 1_209_600)
_WRITES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SWEEPS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)


class MeasuredDatabase(Database):
    """A ledger that knows how long its writes took, waiting for their turn included."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.seconds = Histogram(
            "harvester_ledger_write_seconds",
            "How long writes to the ledger took, from asking to durable.",
            buckets=_WRITES,
            registry=None,
        )

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction, alone; durable when this returns."""
        with self.seconds.time():
            return await super().write(work)

    async def probe(self) -> None:
        """Write something of no meaning, durably; ``LedgerUnavailable`` says why it cannot be."""

        async def work(connection: AsyncConnection) -> None:
            # SQLite keeps this number for the application, which does not use it.
            await connection.exec_driver_sql("PRAGMA user_version = 0")

        await super().write(work)


class MeasuredSweep(Sweep):
    """A sweep that tells how long its rounds took; one without a due account is none."""

    def __init__(self, seconds: Histogram, *parts: Any, budget: float) -> None:
        super().__init__(*parts, budget=budget)
        self._seconds = seconds

    async def run_once(self, followed: Iterable[Account]) -> SweepReport:
        """Sweep the followed accounts that are due, and look at due orders of any account."""
        began = time.monotonic()
        report = await super().run_once(followed)
        if report.accounts:
            self._seconds.observe(time.monotonic() - began)
        return report


def sweep_seconds() -> Histogram:
    """Make what a :class:`MeasuredSweep` tells."""
    text = "How long sweeps took."
    return Histogram("harvester_sweep_duration_seconds", text, buckets=_SWEEPS, registry=None)


class Lag(Protocol):
    """How late the event loop was, in seconds: at the last look, and at most since the start."""

    lag: float
    longest_lag: float


class Metrics(Collector):
    """Everything there is to scrape, in a registry of its own.

    ``refresh`` before each scrape: it reads the ledger, by ``reading``, unless it did so a moment
    ago.
    ``requests`` counts by endpoint and outcome, ``free_bytes`` measures the archive's disk,
    ``ready`` checks what the work needs, ``lag`` is None outside of the service, ``webhooks``
    counts what came of them by outcome, None where none are taken. ``wanting`` says which events
    each receiver wants, by name.
    """

    def __init__(
        self,
        *,
        database: MeasuredDatabase,
        reading: Database,
        sweep_seconds: Histogram,
        pacer: Pacer,
        requests: Mapping[tuple[str, str], int],
        free_bytes: Callable[[], Awaitable[int]],
        ready: Callable[[], Awaitable[Sequence[Check]]] | None,
        lag: Lag | None,
        sweep_interval: timedelta,
        clock: Callable[[], datetime],
        webhooks: Mapping[str, int] | None = None,
        wanting: Mapping[str, EventFilter] | None = None,
    ) -> None:
        self._webhooks = webhooks
        self._database = database
        self._reading = reading
        self._pacer = pacer
        self._requests = requests
        self._free_bytes = free_bytes
        self._ready = ready
        self._lag = lag
        self._wanting = wanting or {}
        self._sweep_interval = sweep_interval
        self._clock = clock
        self._reading_now: asyncio.Task[None] | None = None
        self._fresh_until = 0.0
        self._figures: Figures | None = None
        self._backlogs: Mapping[str, Backlog] = {}
        self._last_sweep: datetime | None = None
        self._mark: int | None = None
        self._free: dict[str, int] = {}
        self._checks: Sequence[Check] = ()
        self._delay = Histogram(
            "harvester_certificate_delay_seconds",
            "How long certificates were owed, from the order seen complete to the file stored.",
            buckets=_DELAYS,
            registry=None,
        )
        self.registry = CollectorRegistry()
        for one in (self, self._delay, database.seconds, sweep_seconds):
            self.registry.register(one)
        ProcessCollector(registry=self.registry)

    async def begin(self) -> None:
        """Count certificates from here on; those stored before have no part in the histogram."""
        self._mark = await last_arrival(self._reading)

    async def refresh(self) -> None:
        """Read the ledger and the disks anew, if what was read is older than it may be.

        A reading that takes long goes on by itself, and what was read before it stands meanwhile.
        """
        read, _ = await asyncio.wait({self._current()}, timeout=_LONGEST_WAIT)
        for task in read:
            task.result()  # a fault of ours is not to be served as figures

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
        self._checks = await self._ready() if self._ready is not None else ()
        now = self._clock()
        try:
            self._figures = await measure(self._reading, now)
            self._backlogs = await backlogs(self._reading, self._wanting)
            self._last_sweep = await last_sweep(self._reading, now, 2 * self._sweep_interval)
            if self._mark is not None:
                await self._count_arrivals(self._mark)
        except HarvesterError:
            self._figures = self._last_sweep = None  # no figure rather than an old one
            self._backlogs = {}
        self._free = {}
        with suppress(HarvesterError, OSError):  # the checks of ledger and archive say why
            self._free["ledger"] = _free_bytes(self._database.path)
            self._free["archive"] = await self._free_bytes()

    async def _count_arrivals(self, mark: int) -> None:
        while True:
            self._mark, owed = await arrivals(self._reading, mark)
            for seconds in owed:
                self._delay.observe(seconds)
            if self._mark == mark:
                return
            mark = self._mark

    def collect(self) -> Iterator[Metric]:
        """Yield what the last refresh read and what the parts count by themselves."""
        yield from build()
        yield from self._collect_requests()
        yield from self._collect_disk()
        if self._webhooks is not None:
            text = "Requests to take webhooks, by what became of them."
            counts = {(outcome,): self._webhooks.get(outcome, 0) for outcome in OUTCOMES}
            yield counter("webhooks", text, counts, ["outcome"])
        if self._figures is not None:
            yield from of_ledger(self._figures)
            yield from of_outbox(self._backlogs)
        yield gauge(
            "oldest_good_sweep_seconds",
            "How long ago the last good sweep of an account may be before that is too long.",
            {(): oldest_good_sweep(self._sweep_interval).total_seconds()},
        )
        if self._last_sweep is not None:
            yield gauge(
                "last_sweep_timestamp_seconds",
                "When the account that waits longest had its last good sweep.",
                {(): self._last_sweep.timestamp()},
            )
        if self._lag is not None:
            yield gauge(
                "event_loop_lag_seconds",
                "How late the event loop was at the last look.",
                {(): self._lag.lag},
            )
            yield gauge(
                "event_loop_longest_lag_seconds",
                "How late the event loop was at most since the start.",
                {(): self._lag.longest_lag},
            )
        if self._checks:
            yield gauge(
                "ready",
                "Whether what the work needs is there, by check.",
                {(check.name,): check.why is None for check in self._checks},
                ["check"],
            )

    def _collect_requests(self) -> Iterator[Metric]:
        text = "Requests to Lune, by endpoint and what came of them."
        yield counter("lune_requests", text, self._requests, ["endpoint", "outcome"])
        waited = {(): self._pacer.waited_seconds}
        yield counter("pacing_wait_seconds", "How long requests waited for their turn.", waited)
        text = "Requests a second allowed by the configuration."
        yield gauge("pacing_limit", text, {(): self._pacer.rate})
        text = "Requests a second let through now: less than the limit for a while after a 429."
        yield gauge("pacing_pace", text, {(): self._pacer.pace})
        text = "Pauses of all requests that a 429 asked for."
        yield counter("pacing_pauses", text, {(): self._pacer.pauses})

    def _collect_disk(self) -> Iterator[Metric]:
        path = self._database.path
        sizes = {("ledger",): _size(path), ("wal",): _size(path.with_name(path.name + "-wal"))}
        yield gauge("ledger_bytes", "Size of the ledger's files.", sizes, ["file"])
        free = {(disk,): count for disk, count in self._free.items()}
        yield gauge("disk_free_bytes", "What the disk still takes from us.", free, ["disk"])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _free_bytes(path: Path) -> int:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize
