"""Run commands and glance at running ones: seconds, CPU seconds, memory, wake-ups."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LAUNCHER = Path(__file__).with_name("launcher.py")
_LONGEST_RUN = 3600.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command cost, the processes it started and waited for included."""

    wall: float
    cpu: float
    peak_mb: float
    switches: int


def run(
    command: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
) -> Cost:
    """Run a command in a folder to its end; ``CalledProcessError`` unless it exits with 0."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _LAUNCHER, str(writing), *command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                pass_fds=[writing],
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            _, stderr = process.communicate(timeout=_LONGEST_RUN)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        code, wall, cpu, peak, switches = report.read().split()
    if code != "0":
        raise subprocess.CalledProcessError(int(code), command, stderr=stderr)
    return Cost(float(wall), float(cpu), int(peak) * 1024 / 1e6, int(switches))


def medians(costs: Sequence[Cost]) -> Cost:
    """Return the median of each figure."""
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        statistics.median(cost.peak_mb for cost in costs),
        round(statistics.median(cost.switches for cost in costs)),
    )


@dataclass(frozen=True, slots=True)
class Glance:
    """A running process at one moment: CPU seconds, memory, voluntary switches of all threads."""

    cpu: float
    rss_mb: float
    peak_mb: float
    switches: int


def glance(pid: int) -> Glance:
    """Glance at a running process, by proc(5); a thread's last sleep is counted when it ends."""
    process = Path("/proc", str(pid))
    # The name of a command may hold spaces and parentheses; the fields begin behind it.
    fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
    status = _status(process)
    threads = process.joinpath("task").iterdir()
    return Glance(
        cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
        rss_mb=status["VmRSS"] * 1024 / 1e6,
        peak_mb=status["VmHWM"] * 1024 / 1e6,
        switches=sum(_status(thread)["voluntary_ctxt_switches"] for thread in threads),
    )


def _status(folder: Path) -> dict[str, int]:
    found = {}
    for line in folder.joinpath("status").read_text().splitlines():
        name, _, text = line.partition(":")
        number = text.removesuffix("kB").strip()
        if number.isdigit():
            found[name] = int(number)
    return found
