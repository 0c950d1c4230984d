"""The last resort: end a process that cannot end itself, after saying where it stands.

Everything is recorded so that a kill at any moment loses nothing; a process that is alive but deaf
is worse than one that is started anew.
"""

from __future__ import annotations

import asyncio
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from harvester.context import Stop

_STALLED = 60.0
_ENDING = 25.0
_ENDING_URGED = 5.0
_TELLING = 2.0
_TICK = 0.5
_SLOWEST_TICK = 5.0


class Watchdog:
    """A thread that ends the process; a blocked loop cannot watch itself.

    The process is ended with ``code`` when nobody called :meth:`beat` for ``stalled`` seconds,
    ``ending`` seconds after a stop was asked for and ``ending_urged`` after it was urged; so it is
    that long after :meth:`leave`, with the code given there. Seconds are counted in ticks of its
    own: a process that was stopped and continued was not silent meanwhile. While only silence can
    end the process the ticks are slow, since each wakes the machine. ``last_words`` is called
    before the end and has two seconds.
    """

    def __init__(
        self,
        stop: Stop,
        code: int,
        *,
        stalled: float = _STALLED,
        ending: float = _ENDING,
        ending_urged: float = _ENDING_URGED,
        last_words: Callable[[], object] = lambda: None,
    ) -> None:
        self._stop = stop
        self._code = code
        self._limits = {"stalled": stalled, "ending": ending, "urged": ending_urged}
        self._tellers = (_Teller(lambda: _write_stacks(self._loop)), _Teller(last_words))
        self._silent = dict.fromkeys(self._limits, 0.0)
        self._left = False
        self._ending = threading.Event()
        # Twelve ticks are few enough to sleep well and many enough to be on time.
        self._pace = min(stalled / 12, _SLOWEST_TICK) if math.isfinite(stalled) else _TICK
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to watch; the threads do not keep the process alive."""
        for teller in self._tellers:
            teller.start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    async def keep_beating(self) -> None:
        """Beat from the running loop, for as long as it runs."""
        self._loop = asyncio.get_running_loop()
        while not self._stop.requested:
            self.beat()
            await self._stop.sleep(self._pace)
        self._ending.set()
        while True:
            self.beat()
            await asyncio.sleep(_TICK)

    def beat(self) -> None:
        """Show that there is life."""
        self._silent["stalled"] = 0.0

    def leave(self, code: int) -> None:
        """Say that the work is over and only leaving is left, with this code."""
        self._code = code
        self._left = True
        self._ending.set()

    def _watch(self) -> None:
        while True:
            passed = self._tick()
            counted = {
                "stalled": not self._left,
                "ending": self._stop.requested,
                "urged": self._stop.urged or self._left,
            }
            for name, limit in self._limits.items():
                self._silent[name] += passed if counted[name] else 0.0
                if self._silent[name] > limit and math.isfinite(limit):
                    self._end()

    def _tick(self) -> float:
        """Sleep a tick; return the seconds it counts for."""
        if self._ending.is_set():
            time.sleep(_TICK)
            return _TICK
        return 0.0 if self._ending.wait(self._pace) else self._pace

    def _end(self) -> None:
        for teller in self._tellers:
            teller.tell()
        os._exit(self._code)


class _Teller(threading.Thread):
    """Waits to be told to do its work: an interpreter that ends makes no new threads (3.12)."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(name="last-words", daemon=True)
        self._work = work
        self._begin = threading.Event()

    def run(self) -> None:
        self._begin.wait()
        self._work()

    def tell(self) -> None:
        """Do the work; wait two seconds at most, since stderr may be a pipe that nobody reads."""
        self._begin.set()
        self.join(_TELLING)


def tell_stacks(loop: asyncio.AbstractEventLoop | None) -> None:
    """Write on stderr where every task and every thread stands, without values.

    Waits two seconds at most: stderr may be a pipe that nobody reads.
    """
    teller = _Teller(lambda: _write_stacks(loop))
    teller.start()
    teller.tell()


def _awaited(what: Any) -> Iterator[str]:
    """Yield the places a suspended coroutine waits at, from the outermost inward."""
    while what is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(what, f"{kind}_frame")), None)
        if kind is None or (frame := getattr(what, f"{kind}_frame")) is None:
            return
        yield f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        what = getattr(what, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")


def _write_stacks(loop: asyncio.AbstractEventLoop | None) -> None:
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        print(f"task {task.get_name()} waits:", *_awaited(task.get_coro()), file=sys.stderr)  # noqa: T201 - logging may be what hangs
    faulthandler.dump_traceback(file=sys.__stderr__ or 2)
