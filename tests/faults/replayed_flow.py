"""A flow whose command is run again and again from the same files, with another fault each time.

Each run gets a copy of the files and a proxy of its own in front of the same Lune, whose clock
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
from tests.faults.injected_faults import NO_FAULT, FaultyRun, ForkServer
from tests.faults.invariants import BrokenError, check_invariants
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene
from tests.faults.tracer import InjectedFault

BEGINNING = "beginning"
_COPIED = ("data", "certificates", "migrations")


@dataclass(slots=True, kw_only=True)
class FlowScene(Scene):
    """A scene whose commands run in a fork server, where faults can be injected."""

    fork_server: ForkServer

    async def run_with_fault(
        self, command: Sequence[str | Path], fault: InjectedFault = NO_FAULT
    ) -> FaultyRun:
        """Run a command with a fault; what it logs is kept for the check of the log."""
        run = await self.fork_server.run(self.home, command, fault)
        self.keep(run.ran.err)
        return run

    async def command(self, *arguments: str | Path) -> Ran:
        """Run a command without a fault."""
        return (await self.run_with_fault(arguments)).ran


def require_done(run: FaultyRun) -> None:
    """Raise :class:`BrokenError` when a command did not end with 0."""
    if run.code != 0:
        raise BrokenError(f"it ended with {run.code}: {run.ran.err}")


@dataclass(frozen=True, slots=True)
class Flow:
    """A command on files in a known state.

    ``left`` checks the files as a command that was cut short leaves them. ``finish`` brings what
    it was about to its end and returns how much was left to do: nothing, had it ended with 0.
    """

    name: str
    command: tuple[str, ...]
    begin: Callable[[FlowScene], Awaitable[None]]
    finish: Callable[[FlowScene], Awaitable[int]]
    left: Callable[[FlowScene], Awaitable[None]] = check_invariants


class ReplayedFlow:
    """A flow's beginning, kept in ``folder``; as many runs from it as one likes."""

    def __init__(self, flow: Flow, fork_server: ForkServer, lune: Sandbox, folder: Path) -> None:
        self.flow = flow
        self._fork_server = fork_server
        self._lune = lune
        self._folder = folder
        self._runs = 0
        self._kept: set[Path] = set()
        self._first: Proxy | None = None

    async def prepare(self) -> None:
        """Bring the files into the state in which the flow begins."""
        async with Proxy(self._lune.base_url, self._lune.accounts[0].id) as proxy:
            await self.flow.begin(self._scene(self._folder / BEGINNING, proxy))
            self._first = proxy

    @asynccontextmanager
    async def at_its_beginning(self) -> AsyncIterator[FlowScene]:
        """Give a scene with the files of the beginning; they go when all held there."""
        assert self._first is not None
        self._runs += 1
        folder = self._folder / str(self._runs)
        account = self._lune.accounts[0].id
        async with Proxy(self._lune.base_url, account) as proxy:
            proxy.served.extend(self._first.served)
            proxy.listed |= self._first.listed
            scene = self._scene(folder, proxy)
            for part in _COPIED:
                if (beginning := self._folder / BEGINNING / part).exists():
                    _copy(beginning, folder)
            yield scene
        if folder not in self._kept:
            shutil.rmtree(folder)

    def _scene(self, folder: Path, proxy: Proxy) -> FlowScene:
        folder.mkdir()
        home = Home(folder, self._lune, lune__base_url=proxy.base_url)
        return FlowScene(home, self._lune, proxy, fork_server=self._fork_server)

    async def check_and_finish(self, scene: FlowScene) -> int:
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
async def open_replayed_flow(flow: Flow, fork_server: ForkServer) -> AsyncIterator[ReplayedFlow]:
    """Prepare a flow in a temporary folder, with a Lune of its own."""
    options = SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0)
    folder = Path(mkdtemp(prefix=f"harvester-{flow.name}-"))
    async with Sandbox(options) as lune:
        replayed = ReplayedFlow(flow, fork_server, lune, folder)
        await replayed.prepare()
        yield replayed
    shutil.rmtree(folder / BEGINNING)
    if not list(folder.iterdir()):
        folder.rmdir()
