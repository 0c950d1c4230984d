"""Logging: structlog for everything, JSON lines or console, one line an event, on stderr.

No key, e-mail address or metadata is ever passed to a logger; texts from outside are shortened
and lose their control characters here, so that no value can break or forge a line.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any, Protocol

import structlog

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


class Stream(Protocol):
    """Where lines go: a text file, or a :class:`Backlog`."""

    def write(self, text: str, /) -> object:
        """Take a text."""

    def flush(self) -> object:
        """Pass on what was taken."""

    def isatty(self) -> bool:
        """Tell whether a person reads along."""

    def fileno(self) -> int:
        """Return the descriptor they are written to; ``OSError`` when there is none."""


class Backlog:
    """A stream that never makes its writer wait, in front of a descriptor that may.

    Lines wait in memory for a thread to write them; what does not fit, and what the descriptor
    refuses (a closed pipe), is dropped and counted in ``dropped``. The next line that gets through
    is followed by one that says how many did not.
    """

    def __init__(self, descriptor: int = _STDERR, most: int = _MOST_WAITING) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(most)
        self._told = 0
        self._notice = b""
        self.dropped = 0
        self._thread = threading.Thread(target=self._pass_on, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str, /) -> int:
        """Take a text, or drop it."""
        line = text.encode("utf-8", "backslashreplace")
        if threading.current_thread() is self._thread:
            # Its own notice: kept for the thread to write once the logging locks are free, since
            # in the queue it might not fit, and the count that it holds would be lost.
            self._notice = line
            return len(text)
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: nobody waits for the descriptor."""

    def isatty(self) -> bool:
        """Tell whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def drain(self, seconds: float) -> bool:
        """Wait until all lines were written, at most so long; tell whether they were."""
        deadline = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)
        return not self._lines.unfinished_tasks

    def _pass_on(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._write(line)
                self._tell_dropped()
            except OSError:
                self.dropped += 1
            finally:
                self._lines.task_done()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line[:_MOST_AT_ONCE]) :]

    def _tell_dropped(self) -> None:
        missing = self.dropped - self._told
        if missing:
            structlog.get_logger().warning("log lines dropped", lines=missing)
            self._write(self._notice)
            self._notice = b""
            self._told += missing


def configure(level: str, form: str, stream: Stream | None = None) -> None:
    """Send all logging to ``stream`` (stderr) as ``console``, ``json`` or ``auto``."""
    stream = stream or sys.stderr
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
    handler = logging.StreamHandler(stream)
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


def is_journal(stream: Stream) -> bool:
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
