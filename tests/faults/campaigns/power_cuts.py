"""Cut the power after every step of a run, in every way the model of the disk knows, and check."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.faults.campaigns.disk_model import WAYS, Disk, State
from tests.faults.campaigns.state_check import Promises, StateCheck
from tests.faults.campaigns.strace_log import Op

_DRAWN_AT_ONCE = 8
"""States drawn at a place before going on to the next, so that every place gets its share."""


@dataclass(slots=True)
class Outcome:
    """How a run came through: its steps, the places to crash, the distinct states checked.

    ``violations`` counts states by kind and ``examples`` has one of each; ``kept`` is a sample of
    the states, with what had been promised by then.
    """

    steps: int
    places: int = 0
    states: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    kept: list[tuple[State, Promises]] = field(default_factory=list)

    def count(self, found: Sequence[str]) -> None:
        """Take in a state with what is broken in it, as the check says it."""
        self.states += 1
        kinds = {line.partition(":")[0]: line for line in found}
        self.violations.update(kinds.keys())
        self.examples = kinds | self.examples


@dataclass(frozen=True, slots=True)
class Extent:
    """How much to check: every state that needs no lots, then drawn ones until ``states``.

    Without ``every`` step, writes that follow each other to one file count as one. ``keep`` states
    are kept, each as likely as any other.
    """

    states: int = 0
    every: bool = True
    keep: int = 0
    seed: int = 1


def crash(
    steps: Sequence[Op],
    fresh_disk: Callable[[], Disk],
    promises: Promises,
    check: StateCheck,
    extent: Extent,
) -> Outcome:
    """Check what crashes of a run leave, ``promises`` being what was acknowledged before it."""
    outcome = Outcome(len(steps))
    rng = random.Random(extent.seed)
    seen: set[int] = set()
    drawing = False
    while not drawing or outcome.states < extent.states:
        before, outcome.places = outcome.states, 0
        for disk, promised in _places(steps, fresh_disk(), promises.copy(), extent.every):
            outcome.places += 1
            for state in _left(disk, rng if drawing else None):
                key = hash((state.fingerprint(), promised.fingerprint()))
                if key not in seen and not (drawing and outcome.states >= extent.states):
                    seen.add(key)
                    outcome.count(check.violations(state, promised))
                    _sample(outcome, state, promised, extent.keep, rng)
        if outcome.states == before:
            break
        drawing = True
    return outcome


def _places(
    steps: Sequence[Op], disk: Disk, promised: Promises, every: bool
) -> Iterator[tuple[Disk, Promises]]:
    """Yield disk and promises at each place to crash; both go on from one to the next."""
    for at, op in enumerate(steps):
        disk.play(op)
        promised.note(op)
        after = steps[at + 1] if at + 1 < len(steps) else None
        goes_on = after is not None and (after.kind, after.path) == ("write", op.path)
        if every or op.kind != "write" or not goes_on:
            yield disk, promised


def _left(disk: Disk, rng: random.Random | None) -> Iterator[State]:
    if rng is None:
        yield from (disk.crash(way=way) for way in range(WAYS))
    else:
        yield from (disk.crash(rng) for _ in range(_DRAWN_AT_ONCE))


def _sample(
    outcome: Outcome, state: State, promised: Promises, keep: int, rng: random.Random
) -> None:
    """Keep some of the states, each as likely as any other however many will come."""
    if len(outcome.kept) < keep:
        outcome.kept.append((state, promised.copy()))
    elif (place := rng.randrange(outcome.states)) < keep:
        outcome.kept[place] = state, promised.copy()
