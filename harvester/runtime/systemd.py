"""The service manager: notified when the daemon is ready, how things stand, that it is alive.

The protocol is sd_notify(3): datagrams of ``NAME=value`` lines to the socket that the manager named
in the environment. Nobody waits for a notification, and one that fails is no reason to stop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import timedelta
from typing import Final, Self

import structlog

from harvester.context import Stop
from harvester.domain.errors import HarvesterError

log = structlog.get_logger()

_EVERY: Final = 60.0
"""Seconds between two texts where the manager wants no signs of life."""

_CALM: Final = 5.0
"""Seconds between two texts while there is something new to say."""

_EARLY: Final = 1.0
"""Seconds that a text may come early: the next look may be two seconds away."""

_LONGEST_TEXT: Final = 300


class Supervisor:
    """The service manager, or nobody: then everything here does nothing.

    ``address`` is a socket's path, or a name after ``@`` without one (unix(7), abstract sockets).
    ``watchdog`` is after how many seconds without a sign of life the manager kills the process,
    None when it never does.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._address = address
        self._text = ""
        self._failed = False
        self._remark = ""
        self.watchdog = watchdog

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Self:
        """Take the manager's variables out of an environment: no child is to speak for us."""
        address = environment.pop("NOTIFY_SOCKET", None)
        microseconds = environment.pop("WATCHDOG_USEC", "")
        wanted_of = environment.pop("WATCHDOG_PID", str(os.getpid()))
        wanted = wanted_of == str(os.getpid()) and microseconds.isdecimal() and int(microseconds)
        return cls(address or None, int(microseconds) / 1e6 if wanted else None)

    @property
    def listens(self) -> bool:
        """Whether there is anybody to tell."""
        return self._address is not None

    def ready(self, text: str) -> None:
        """Say that the daemon is up."""
        self._text = text
        self._send("READY=1", self._status())

    def reloading(self) -> None:
        """Say that the configuration is read again; ``reloaded`` has to follow."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def reloaded(self, remark: str = "") -> None:
        """Say that it was read; ``remark`` is added to every text until the next time."""
        self._remark = remark
        self._send("READY=1", self._status())

    def alive(self, text: str) -> None:
        """Say how things stand, which is also the sign of life that is wanted."""
        self._text = text
        self._send(self._status(), *(["WATCHDOG=1"] if self.watchdog is not None else []))

    def stopping(self) -> None:
        """Say that the daemon ends, asked to or not."""
        self._send("STOPPING=1", "STATUS=stopping")

    def _status(self) -> str:
        text = "; ".join(part for part in (self._text, self._remark) if part)
        return "STATUS=" + "".join(c if c.isprintable() else "?" for c in text[:_LONGEST_TEXT])

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        name = self._address
        name = "\0" + name[1:] if name.startswith("@") else name
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.setblocking(False)
                channel.sendto("\n".join(lines).encode("utf-8", "replace"), name)
        except (OSError, ValueError) as error:
            if not self._failed:
                log.warning("service manager not notified", reason=str(error))
            self._failed = True
        else:
            self._failed = False


NOBODY: Final = Supervisor()


class Reports:
    """Tells the service manager how things stand, as long as work goes on.

    :meth:`look` is called by whoever sees that the loop turns and no step hangs. ``state`` asks the
    ledger and returns a text; a ledger that does not answer leaves the manager without a sign.
    ``requests`` counts what was asked of Lune: after it moved there is something new to say.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        state: Callable[[], Awaitable[str]],
        requests: Callable[[], int],
        stop: Stop,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._state = state
        self._requests = requests
        self._stop = stop
        self._monotonic = monotonic
        watchdog = supervisor.watchdog
        self._every = _EVERY if watchdog is None else watchdog / 2
        self._told_at: float | None = None
        self._told_of = 0
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Begin to tell, when that is due and not under way already."""
        if not self._supervisor.listens:
            return
        if self._stop.requested:
            self._supervisor.stopping()
        elif (self._task is None or self._task.done()) and self._is_due():
            self._told_at, self._told_of = self._monotonic(), self._requests()
            self._task = asyncio.create_task(self._tell(), name="supervision")

    def _is_due(self) -> bool:
        if self._told_at is None:
            return True
        silent = self._monotonic() - self._told_at
        soon = min(_CALM, self._every) if self._requests() != self._told_of else self._every
        return silent >= soon - _EARLY

    async def _tell(self) -> None:
        try:
            text = await self._state()
        except HarvesterError as error:
            text = str(error)  # it answered: a restart would not mend it
        self._supervisor.alive(text)

    async def close(self) -> None:
        """End a telling that waits for the ledger."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})


def standing(followed: int, owed: int, sweep_age: timedelta | None, *troubles: str | None) -> str:
    """Say in a line how things stand: ``following 2 orders, 1 certificate owed, …; trouble``."""
    orders = "1 order" if followed == 1 else f"{followed} orders"
    certificates = "1 certificate" if owed == 1 else f"{owed} certificates"
    last = "no sweep yet" if sweep_age is None else f"last sweep {_ago(sweep_age)}"
    line = f"following {orders}, {certificates} owed, {last}"
    return "; ".join([line, *(trouble for trouble in troubles if trouble)])


def _ago(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    if minutes < 1:
        return "just now"
    return f"{minutes} min ago" if minutes < 120 else f"{minutes // 60} h ago"
