"""A stage on which a command is struck, again and again, from the same beginning to its end.

Each try gets a copy of the same files and a wire of its own in front of the same Lune, whose clock
stands still.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, Ran
from tests.faults.invariants import BrokenError, check_invariants
from tests.faults.scene import Scene
from tests.faults.striking import Stem, Strike, Struck
from tests.faults.wire import Wire

BEGINNING = "beginning"


@dataclass(slots=True, kw_only=True)
class Act(Scene):
    """A scene whose commands branch off a stem, and can be struck."""

    stem: Stem

    async def strike(self, command: Sequence[str | Path], strike: Strike) -> Struck:
        """Run a command under a strike; what it says is kept for the check of the log."""
        struck = await self.stem.run(self.home, command, strike)
        self.keep(struck.ran.err)
        return struck

    async def command(self, *arguments: str | Path) -> Ran:
        """Run a command that nothing befalls."""
        return (await self.strike(arguments, Strike(0))).ran


def require_done(struck: Struck) -> None:
    """Raise :class:`BrokenError` when a command did not end with 0."""
    if struck.code != 0:
        raise BrokenError(f"it ended with {struck.code}: {struck.ran.err}")


@dataclass(frozen=True, slots=True)
class Flow:
    """A command on files in a known state.

    ``left`` checks the files as a command that was cut short leaves them. ``finish`` brings what
    it was about to its end and returns how much was left to do: nothing, had it ended with 0.
    """

    name: str
    command: tuple[str, ...]
    begin: Callable[[Act], Awaitable[None]]
    finish: Callable[[Act], Awaitable[int]]
    left: Callable[[Act], Awaitable[None]] = check_invariants


class Stage:
    """A flow's beginning, kept in ``folder``; as many tries from it as one likes."""

    def __init__(self, flow: Flow, stem: Stem, lune: Sandbox, folder: Path) -> None:
        self.flow = flow
        self._stem = stem
        self._lune = lune
        self._folder = folder
        self._tries = 0
        self._kept: set[Path] = set()
        self._first: Wire | None = None

    async def set(self) -> None:
        """Bring the files into the state in which the flow begins."""
        async with Wire(self._lune.base_url, self._lune.accounts[0].id) as wire:
            await self.flow.begin(self._act(self._folder / BEGINNING, wire))
            self._first = wire

    @asynccontextmanager
    async def play(self) -> AsyncIterator[Act]:
        """Give an act that is just at the beginning; its folder goes when all held there."""
        assert self._first is not None
        self._tries += 1
        folder = self._folder / str(self._tries)
        account = self._lune.accounts[0].id
        async with Wire(self._lune.base_url, account) as wire:
            wire.served.extend(self._first.served)
            wire.listed |= self._first.listed
            act = self._act(folder, wire)
            for part in ("data", "certificates"):
                if (beginning := self._folder / BEGINNING / part).exists():
                    _copy(beginning, folder)
            yield act
        if folder not in self._kept:
            shutil.rmtree(folder)

    def _act(self, folder: Path, wire: Wire) -> Act:
        folder.mkdir()
        home = Home(folder, self._lune, lune__base_url=wire.base_url)
        return Act(home, self._lune, wire, stem=self._stem)

    async def end(self, act: Act) -> int:
        """Check the files as they were left, finish the flow, check again; return what was left.

        :class:`BrokenError` says what does not hold, and where the files are.
        """
        try:
            act.clean_end = False
            await self.flow.left(act)
            left = await self.flow.finish(act)
            act.clean_end = True
            await check_invariants(act)
        except Exception as error:
            self._kept.add(act.home.folder)
            broken = f"{type(error).__name__}: {error}"
            raise BrokenError(f"{broken}\nin {act.home.folder}") from error
        return left


def _copy(source: Path, into: Path) -> None:
    """Copy a folder as it is, hard links included."""
    made: dict[int, Path] = {}

    def copy(one: str, other: str) -> None:
        path = Path(one)
        twin = made.setdefault(path.stat().st_ino, Path(other))
        if twin == Path(other):
            shutil.copy2(one, other)
        else:
            Path(other).hardlink_to(twin)

    shutil.copytree(source, into / source.name, copy_function=copy)


@asynccontextmanager
async def open_stage(flow: Flow, stem: Stem) -> AsyncIterator[Stage]:
    """Set a stage up in a temporary folder, with a Lune of its own."""
    options = SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0)
    folder = Path(mkdtemp(prefix=f"harvester-{flow.name}-"))
    async with Sandbox(options) as lune:
        stage = Stage(flow, stem, lune, folder)
        await stage.set()
        yield stage
    shutil.rmtree(folder / BEGINNING)
    if not list(folder.iterdir()):
        folder.rmdir()
