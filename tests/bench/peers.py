"""Certificates a second and CPU each, beside other ways to fetch the same files.

nginx on loopback serves them (:mod:`tests.bench.static_lune`). The harvester runs as the installed
command ``run --drain`` with a fresh ledger and archive, its rate limit lifted and nothing else:
it reads the listing, records orders and transitions, checks every PDF and makes every file and row
durable. The others get a list of addresses and fetch them. All take turns, round after round, so
that a disturbance hits all alike; every turn begins with what was written on disk, and nothing is
deleted before the end, because ext4 is slow at making files after many were deleted.

    python -m tests.bench.peers [--rounds N] [--certificates N] [--size BYTES] [--large]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.acceptance.harness import HARVESTER
from tests.bench.__main__ import print_table
from tests.bench.installation import Installation
from tests.bench.processes import Cost, medians, run
from tests.bench.static_lune import KEY, StaticLune, static_lune

CERTIFICATES = 2000
SIZE = 60_000
ROUNDS = 5
_LARGE = 100_000
_LARGE_SIZE = 1_500
_NO_LIMIT = 100_000
_HEADER = f"Authorization: Bearer {KEY}"

HARVEST = "harvester"
XARGS = "xargs -P16 curl"
ARIA2C = "aria2c -j16"

Fetch = Callable[[StaticLune, Path], Cost]


class Incomplete(AssertionError):
    """A way did not bring the files it was asked for."""


def harvest(lune: StaticLune, folder: Path) -> Cost:
    """Drain with a fresh ledger and archive in ``folder``."""
    settings = {"lune__base_url": lune.base_url, "lune__rate_limit": _NO_LIMIT}
    home = Installation(folder, **settings, log__level="warning")
    return run([HARVESTER, "run", "--drain"], folder=folder, environment=home.environment())


def xargs(lune: StaticLune, folder: Path) -> Cost:
    """Start a curl for each file, sixteen at once."""
    listed = _write_list(lune, folder, "-o {name} {url}")
    return run(["xargs", "-P16", "-n3", "-a", listed, "curl", "-sf", "-H", _HEADER], folder=folder)


def curl_parallel(lune: StaticLune, folder: Path) -> Cost:
    """Let one curl fetch all, sixteen at once."""
    listed = _write_list(lune, folder, 'url = "{url}"\noutput = "{name}"')
    options = ["-sf", "--parallel", "--parallel-max", "16", "-H", _HEADER, "-K", str(listed)]
    return run(["curl", *options], folder=folder)


def aria2c(lune: StaticLune, folder: Path) -> Cost:
    """Let aria2 fetch all, sixteen at once."""
    listed = _write_list(lune, folder, "{url}\n out={name}")
    options = ["-q", "-j16", f"--header={_HEADER}", "--no-conf", "-i", str(listed)]
    return run(["aria2c", *options], folder=folder)


def plain_script(lune: StaticLune, folder: Path) -> Cost:
    """Run a plain aiohttp script, 32 at once."""
    listed = _write_list(lune, folder, "{url} {name}")
    script = Path(__file__).with_name("plain_script.py")
    return run([sys.executable, script, listed, KEY], folder=folder)


def _write_list(lune: StaticLune, folder: Path, line: str) -> Path:
    listed = folder / "list"
    lines = [
        line.format(url=f"{lune.base_url}/orders/{one}/certificate", name=f"{one}.pdf")
        for one in lune.order_ids
    ]
    listed.write_text("\n".join(lines) + "\n")
    return listed


WAYS: dict[str, tuple[str | None, Fetch]] = {
    HARVEST: (None, harvest),
    XARGS: ("curl", xargs),
    ARIA2C: ("aria2c", aria2c),
    "curl --parallel": ("curl", curl_parallel),
    "plain aiohttp, 32 at once": (None, plain_script),
}
"""The ways by name, each with the program it needs beside this environment."""


@dataclass(slots=True)
class Turns:
    """What each turn of one way cost."""

    costs: list[Cost] = field(default_factory=list)

    def row(self, way: str, certificates: int, others: dict[str, Turns]) -> dict[str, object]:
        """Return the table's row; ratios are of the same round, and above 1 is better."""
        rates = [certificates / cost.wall for cost in self.costs]
        middle = medians(self.costs)
        row: dict[str, object] = {
            "way": way,
            "certificates": certificates,
            "a second": round(statistics.median(rates)),
            "min-max": f"{min(rates):.0f}-{max(rates):.0f}",
            "CPU ms each": round(1000 * middle.cpu / certificates, 3),
            "peak MB": round(middle.peak_mb, 1),
        }
        for name in (XARGS, ARIA2C):
            if name in others:
                pairs = list(zip(self.costs, others[name].costs, strict=True))
                faster = statistics.median(other.wall / mine.wall for mine, other in pairs)
                cheaper = statistics.median(other.cpu / mine.cpu for mine, other in pairs)
                row[f"x {name.split()[0]}"] = round(faster, 2)
                row[f"x {name.split()[0]}, CPU"] = round(cheaper, 2)
        return row


def take_turns(
    folder: Path, certificates: int, size: int, rounds: int, ways: Sequence[str]
) -> list[dict[str, object]]:
    """Let each way fetch the certificates so many times; raise ``Incomplete`` unless all came."""
    turns = {way: Turns() for way in ways}
    with static_lune(folder / "lune", certificates, size) as lune:
        for number in range(rounds):
            for way in ways:
                own = folder / f"{number}-{way.replace(' ', '-')}"
                own.mkdir()
                os.sync()  # nobody pays for what another has not written yet
                turns[way].costs.append(WAYS[way][1](lune, own))
                check(way, own, lune)
    return [turns[way].row(way, certificates, turns) for way in ways]


def check(way: str, folder: Path, lune: StaticLune) -> None:
    """Raise ``Incomplete`` unless the folder holds every certificate, whole, and no other."""
    found = sorted(
        hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("**/*.pdf")
    )
    if found != sorted(lune.digests):
        raise Incomplete(f"{way}: {len(found)} files for {len(lune.digests)} certificates")


def installed() -> list[str]:
    """Return the ways that this machine has the programs for."""
    return [way for way, (program, _) in WAYS.items() if program is None or shutil.which(program)]


def measure(
    *,
    small: bool = False,
    rounds: int = ROUNDS,
    certificates: int = CERTIFICATES,
    size: int = SIZE,
    large: bool = False,
) -> list[dict[str, object]]:
    """Return a row a way; with ``large`` one more, for the harvester's memory."""
    if small:
        rounds, certificates = 1, 120
    with TemporaryDirectory(prefix="harvester-bench-") as folder:
        rows = take_turns(Path(folder), certificates, size, rounds, installed())
        if large:
            own = Path(folder, "large")
            own.mkdir()
            rows += take_turns(own, _LARGE, _LARGE_SIZE, 1, [HARVEST])
    return rows


def main() -> int:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--certificates", type=int, default=CERTIFICATES)
    parser.add_argument("--size", type=int, default=SIZE, help="bytes of a certificate")
    parser.add_argument(
        "--large", action="store_true", help=f"also memory at {_LARGE} orders, harvester only"
    )
    print_table(measure(**vars(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
