"""A stage on which a command is struck, again and again, from the same beginning to its end.

Each try gets a copy of the same files and a wire of its own in front of the same Lune, whose clock
stands still.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, Ran
from tests.faults.invariants import BrokenError, check_invariants
from tests.faults.scene import Scene
from tests.faults.wire import Wire

TRACER = Path(__file__).with_name("tracer.py")
BEGINNING = "beginning"


@dataclass(frozen=True, slots=True)
class Strike:
    """What befalls a command: ``what`` (KILL or an errno's name) at its call number ``at``.

    ``ever`` fails all calls from there on; ``only`` counts the calls of one name alone.
    """

    at: int
    what: str = "KILL"
    ever: bool = False
    only: str | None = None


@dataclass(frozen=True, slots=True)
class Struck:
    """How a command under a strike ended; ``hit`` is None when it ended before the call came.

    ``code`` is negative for a signal's end.
    """

    code: int
    hit: str | None
    ran: Ran


async def run_struck(home: Home, command: Sequence[str], strike: Strike) -> Struck:
    """Run a command of the harvester under a strike; ``TimeoutError`` when it does not end."""
    report = home.folder / "strike.json"
    options = ["--report", str(report), "--at", str(strike.at), "--strike", strike.what]
    options += ["--ever"] if strike.ever else []
    options += ["--only", strike.only] if strike.only else []
    # Without site-packages, which are not the tracer's business, it is there at once.
    program: tuple[str | Path, ...] = (sys.executable, "-S", TRACER, *options)
    program += (sys.executable, "-m", "harvester")
    ran = await home.run(*command, program=program, env={"PYTHONDONTWRITEBYTECODE": "1"})
    found = json.loads(report.read_text("utf-8"))
    return Struck(found["code"], found["hit"], ran)


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
    begin: Callable[[Scene], Awaitable[None]]
    finish: Callable[[Scene], Awaitable[int]]
    left: Callable[[Scene], Awaitable[None]] = check_invariants


class Stage:
    """A flow's beginning, kept in ``folder``; as many tries from it as one likes."""

    def __init__(self, flow: Flow, lune: Sandbox, folder: Path) -> None:
        self.flow = flow
        self._lune = lune
        self._folder = folder
        self._tries = 0
        self._kept: set[Path] = set()
        self._first: Wire | None = None

    async def set(self) -> None:
        """Bring the files into the state in which the flow begins."""
        async with Wire(self._lune.base_url, self._lune.accounts[0].id) as wire:
            await self.flow.begin(self._scene(self._folder / BEGINNING, wire))
            self._first = wire

    @asynccontextmanager
    async def play(self) -> AsyncIterator[Scene]:
        """Give a scene that is just at the beginning; its folder goes when all held there."""
        assert self._first is not None
        self._tries += 1
        folder = self._folder / str(self._tries)
        account = self._lune.accounts[0].id
        async with Wire(self._lune.base_url, account) as wire:
            wire.served.extend(self._first.served)
            wire.listed |= self._first.listed
            scene = self._scene(folder, wire)
            for part in ("data", "certificates"):
                if (beginning := self._folder / BEGINNING / part).exists():
                    _copy(beginning, folder)
            yield scene
        if folder not in self._kept:
            shutil.rmtree(folder)

    def _scene(self, folder: Path, wire: Wire) -> Scene:
        folder.mkdir()
        return Scene(Home(folder, self._lune, lune__base_url=wire.base_url), self._lune, wire)

    async def end(self, scene: Scene) -> int:
        """Check the files as they were left, finish the flow, check again; return what was left.

        :class:`BrokenError` says what does not hold, and where the files are.
        """
        try:
            scene.clean_end = False
            await self.flow.left(scene)
            left = await self.flow.finish(scene)
            scene.clean_end = True
            await check_invariants(scene)
        except Exception as error:
            self._kept.add(scene.home.folder)
            broken = f"{type(error).__name__}: {error}"
            raise BrokenError(f"{broken}\nin {scene.home.folder}") from error
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
async def open_stage(flow: Flow) -> AsyncIterator[Stage]:
    """Set a stage up in a temporary folder, with a Lune of its own."""
    options = SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0)
    folder = Path(mkdtemp(prefix=f"harvester-{flow.name}-"))
    async with Sandbox(options) as lune:
        stage = Stage(flow, lune, folder)
        await stage.set()
        yield stage
    shutil.rmtree(folder / BEGINNING)
    if not list(folder.iterdir()):
        folder.rmdir()
