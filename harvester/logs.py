"""Logging: structlog for everything, JSON lines or console, one line an event, on stderr.

No key, e-mail address or metadata is ever passed to a logger; texts from outside are shortened
and lose their control characters here, so that no value can break or forge a line.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TextIO

import structlog

from harvester.domain.instants import rfc3339

_LONGEST_TEXT = 1000
_STDERR = 2
_MOST_WAITING = 10_000
_MOST_AT_ONCE = 64 * 1024
_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
    (logging.NOTSET, 7),
)
"""Levels and syslog's numbers for them, the most urgent first."""


class Backlog(QueueHandler):
    """A handler that never makes its caller wait, in front of a descriptor that may.

    Lines wait in memory for a thread to write them; what does not fit, and what the descriptor
    refuses (a closed pipe), is dropped and counted in ``dropped``. The next line that gets through
    is followed by one that says how many did not.
    """

    def __init__(self, descriptor: int = _STDERR, most: int = _MOST_WAITING) -> None:
        self._lines: queue.Queue[logging.LogRecord] = queue.Queue(most)
        super().__init__(self._lines)
        self.dropped = 0
        _Writer(self, self._lines, descriptor).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Take a line, or drop it."""
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def drain(self, seconds: float) -> bool:
        """Wait until all lines were written, at most so long; tell whether they were."""
        deadline = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)
        return not self._lines.unfinished_tasks


class _Writer(QueueListener):
    """Writes the lines of a backlog, in its thread; no handler, whose lock could be waited for."""

    def __init__(
        self, backlog: Backlog, lines: queue.Queue[logging.LogRecord], descriptor: int
    ) -> None:
        super().__init__(lines)
        self._backlog = backlog
        self._descriptor = descriptor
        self._reported = 0

    def handle(self, record: logging.LogRecord) -> None:
        """Write a line that was formatted before, and how many were dropped."""
        try:
            self._write(record.getMessage())
            missing = self._backlog.dropped - self._reported
            if missing:
                self._write(self._backlog.format(_dropped_lines(missing)))
                self._reported += missing
        except OSError:
            self._backlog.dropped += 1

    def _write(self, text: str) -> None:
        line = f"{text}\n".encode("utf-8", "backslashreplace")
        while line:
            line = line[os.write(self._descriptor, line[:_MOST_AT_ONCE]) :]


def _dropped_lines(count: int) -> logging.LogRecord:
    """Make the record that structlog would make, which cannot go through the queue: it is full."""
    event = {"lines": count, "event": "log lines dropped", "level": "warning"}
    event["timestamp"] = rfc3339(datetime.now(UTC))
    made = {"msg": event, "levelno": logging.WARNING, "_logger": None, "_name": "warning"}
    return logging.makeLogRecord(made)


def configure(
    level: str, form: str, stream: TextIO | None = None, handler: logging.Handler | None = None
) -> None:
    """Send all logging to ``stream`` (stderr) as ``console``, ``json`` or ``auto``.

    ``handler`` is who writes it there, by default one that may wait.
    """
    stream = stream or sys.stderr
    handler = handler or logging.StreamHandler(stream)
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _make_safe,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    # Tracebacks without locals: a local may be the key.
    formatter = _WithPriority if is_journal(stream) else structlog.stdlib.ProcessorFormatter
    handler.setFormatter(
        formatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer(console=console),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("apscheduler", "aiosqlite", "sqlalchemy", "alembic", "asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def is_journal(stream: TextIO) -> bool:
    """Tell whether a stream is the journal's, which systemd names in ``JOURNAL_STREAM``."""
    try:
        file = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"


class _WithPriority(structlog.stdlib.ProcessorFormatter):
    """Begins each line with its priority, as sd-daemon(3) has it: ``journalctl -p`` sees it."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        lines = super().format(record).splitlines()
        return "\n".join(f"<{priority}>{line}" for line in lines)


def _renderer(*, console: bool) -> list[Any]:
    if console:
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain, pad_event_to=22)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _make_safe(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str) and (len(value) > _LONGEST_TEXT or not value.isprintable()):
            text = value[:_LONGEST_TEXT]
            event[name] = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return event
