"""The steps of a proof: each prints a line with its result, what was seen and how long it took."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
_SHOWN = 4000


class StepFailed(Exception):
    """What was claimed does not hold; the text says what was seen instead."""


class CannotProve(Exception):
    """This machine lacks what the proof needs; the text says what."""


class Proof:
    """A sequence of steps with a folder of their own, and what has to be undone after them.

    ``folder`` is empty at the start and gone at the end; ``undo`` closes what was started, in
    reverse order, however the proof ends.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.undo = ExitStack()
        self.steps = 0
        self.seen = ""

    def run(self, prove: Callable[[Proof], None]) -> bool:
        """Run a proof; tell whether every step of it held."""
        began = time.monotonic()
        try:
            with self.undo:
                # resolved: container engines and namespaces do not follow links of the host
                made = self.undo.enter_context(tempfile.TemporaryDirectory(prefix="prove-"))
                self.folder = Path(made).resolve()
                prove(self)
        except StepFailed:
            return False
        except CannotProve as lacking:
            print(f"{self.name}: not proven here: {lacking}", flush=True)
            return not os.environ.get("HARVESTER_REQUIRE_ALL")
        seconds = time.monotonic() - began
        print(f"{self.name}: {self.steps} steps held, {seconds:.0f} s", flush=True)
        return True

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Run a step; its line shows what was put in ``seen`` meanwhile."""
        self.seen = ""
        began = time.monotonic()
        try:
            yield
        except (StepFailed, OSError, subprocess.SubprocessError) as failure:
            print(f"{self.name}: FAILED {what}: {failure}", flush=True)
            raise StepFailed(what) from failure
        self.steps += 1
        seen = f": {self.seen}" if self.seen else ""
        print(f"{self.name}: ok {what}{seen} ({time.monotonic() - began:.1f} s)", flush=True)


def fail(seen: str) -> NoReturn:
    """End the step that runs: what was claimed does not hold."""
    raise StepFailed(seen)


def run(*command: str | Path, exits: int = 0, within: float = 600.0, **options: object) -> str:
    """Run a command; return its stdout. Fails with its output unless it exits with ``exits``."""
    words = [str(word) for word in command]
    done = subprocess.run(  # type: ignore[call-overload]  # options are passed on as they come
        words, capture_output=True, text=True, timeout=within, check=False, **options
    )
    if done.returncode != exits:
        fail(
            f"{shlex.join(words)} exited with {done.returncode}, not {exits}:\n"
            f"{done.stdout[-_SHOWN:]}{done.stderr[-_SHOWN:]}"
        )
    return str(done.stdout)


def start(
    proof: Proof,
    command: Sequence[str | Path],
    log: Path,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program whose output goes to a file; it is ended with the proof."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    proof.undo.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def until(holds: Callable[[], object], what: str, within: float = 180.0) -> float:
    """Wait for something, asking often; return the seconds it took. Fails when it never comes."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > within:
            fail(f"{what}: not within {within:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - began


def judge(took: Sequence[float], most: float) -> str:
    """Return some times as text; fails when even the least of them is too long.

    What else a machine does adds to all of them, and where it has far more to do than processors
    they say nothing of the harvester: then the text says that it was not shown.
    """
    seen = ", ".join(f"{seconds:.1f} s" for seconds in took)
    if min(took) <= most:
        return seen
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load < 2 * processors:
        fail(seen)
    return f"NOT SHOWN: {seen}, on {processors} processors with a load of {load:.0f}"


def note(text: str) -> None:
    """Say something that is no result, on stderr."""
    print(text, file=sys.stderr, flush=True)
