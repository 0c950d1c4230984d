"""Whether the service is alive: how late its loop is, whether its clock stepped or a step hangs.

This is the one verdict: ``/healthz`` shows it, the service manager gets its sign of life only while
it is good, and the daemon ends when it is not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from harvester.context import Context

log = structlog.get_logger()

_TICK = 0.25
_IDLE_TICK = 2.0
_LINGERING = 0.5
_LATE = 1.0
_TOO_LATE = 10.0
_STEPPED = 5.0


class StepHungError(RuntimeError):
    """A step did nothing for longer than anything it waits for may take."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what is wrong with it; None when nothing is."""

    name: str
    cause: str | None = None


@dataclass(slots=True)
class _Step:
    """``silent`` are seconds of a working loop without a sign of life, ``every`` its interval."""

    every: float
    running: bool = False
    silent: float = 0.0
    ended_at: float = -math.inf


class Liveness:
    """Looks at loop, clock and steps, on the loop it watches.

    Four times a second while steps run, which hold loops up if anything does, from the moment one
    begins until a moment after; else every other second, since each look wakes the machine.
    ``lag`` is by how many seconds the loop was late at the last look, ``longest_lag`` the most
    since the start, both on the monotonic clock. ``requests`` counts what was asked of Lune: while
    it moves, no running step is taken to hang. Silence is counted in looks, not read off a clock:
    a process that was stopped and continued did not hang. ``wall`` is the wall clock.
    """

    def __init__(
        self, context: Context, requests: Callable[[], int], wall: Callable[[], float] = time.time
    ) -> None:
        self._stop = context.stop
        self._timeout = context.limits.step_timeout
        self._requests = requests
        self._wall = wall
        self._steps: dict[str, _Step] = {}
        self._asked = 0
        self._nudged_at = math.inf
        self._nudge: asyncio.Future[None] | None = None
        self.lag = 0.0
        self.longest_lag = 0.0

    def expect(self, name: str, every: float) -> None:
        """Look after a step that begins every so many seconds."""
        self._steps[name] = _Step(every)

    def began(self, name: str) -> None:
        """Note that a step runs."""
        step = self._steps[name]
        step.running, step.silent = True, 0.0
        if self._nudge is not None and not self._nudge.done():
            self._nudged_at = time.monotonic()
            self._nudge.set_result(None)

    def ended(self, name: str) -> None:
        """Note that a step ended, well or not."""
        step = self._steps[name]
        step.running, step.silent, step.ended_at = False, 0.0, time.monotonic()

    def checks(self) -> Sequence[Check]:
        """Return the verdict: whether the loop turns and every step goes on."""
        late = f"was {self.lag:.0f} s late" if self.lag > _TOO_LATE else None
        return [Check("loop", late), *(self._check(name) for name in self._steps)]

    async def run(
        self, stepped: Callable[[], None], looked: Callable[[], object] = lambda: None
    ) -> None:
        """Return when asked to stop; call ``stepped`` after each step of the wall clock.

        ``looked`` is called after each look that found nothing wrong. ``StepHungError`` when a
        step shows no sign of life, or is not begun any more.
        """
        stopped = asyncio.create_task(self._stop.wait(), name="liveness-stop")
        try:
            await self._keep_looking(stopped, stepped, looked)
        finally:
            stopped.cancel()

    async def _keep_looking(
        self,
        stopped: asyncio.Future[None],
        stepped: Callable[[], None],
        looked: Callable[[], object],
    ) -> None:
        looked_at = time.monotonic()
        offset = self._wall() - looked_at
        while not self._stop.requested:
            tick = _TICK if self._are_busy(looked_at) else _IDLE_TICK
            await self._sleep(stopped, tick)
            now = time.monotonic()
            if not self._stop.requested:  # else it was woken early, as it should be
                self._note_lag(now - min(looked_at + tick, self._nudged_at))
            passed, looked_at = min(now - looked_at, tick), now
            moved = self._wall() - now - offset
            if abs(moved) > _STEPPED:
                log.warning("wall clock stepped", seconds=round(moved))
                offset += moved
                stepped()
            self._count_silence(passed)
            self._require_progress()
            looked()

    def _are_busy(self, now: float) -> bool:
        return any(
            step.running or now - step.ended_at < _LINGERING for step in self._steps.values()
        )

    async def _sleep(self, stopped: asyncio.Future[None], seconds: float) -> None:
        """Sleep, or return early when asked to stop or when a step begins."""
        self._nudged_at = math.inf
        self._nudge = asyncio.get_running_loop().create_future()
        await asyncio.wait(
            {stopped, self._nudge}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )

    def _note_lag(self, seconds: float) -> None:
        self.lag = max(seconds, 0.0)
        self.longest_lag = max(self.longest_lag, self.lag)
        if self.lag > _LATE:
            log.warning("process was held up", seconds=round(self.lag, 3))

    def _count_silence(self, passed: float) -> None:
        asked = self._requests()
        moving, self._asked = asked != self._asked, asked
        for step in self._steps.values():
            step.silent = 0.0 if moving and step.running else step.silent + passed

    def _require_progress(self) -> None:
        for name in self._steps:
            cause = self._check(name).cause
            if cause is not None and not self._stop.requested:
                raise StepHungError(f"{name} {cause}")

    def _check(self, name: str) -> Check:
        step = self._steps[name]
        timeout = self._timeout if step.running else self._timeout + step.every
        if step.silent <= timeout:
            return Check(name)
        what = "does nothing" if step.running else "is not begun any more"
        return Check(name, f"{what}, for {step.silent:.0f} s")
