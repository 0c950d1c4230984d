"""Measure the harvester beside its peers: ``python -m tests.bench [NAME ...] [--small] [--json]``.

Each benchmark prints a table; ``--json FILE`` keeps all rows. ``--small`` is the setting that
runs with the tests: it shows that a benchmark works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = {
    "peers": "certificates a second and CPU each, beside curl, aria2c and others",
    "rate_limit": "how much of a rate limit is used, and how many 429s that costs",
    "economy": "requests a day and delays for so many open orders, simulated",
    "ledger": "a ledger of a million orders: start, planning, commands, size",
    "idle": "what the daemon costs when nothing is due, and how fast commands start",
    "load": "the harvest's rate while strangers and webhooks flood the listener",
}


def main() -> int:
    """Run the named benchmarks, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--small", action="store_true", help="for correctness, not for figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows as JSON")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in arguments.names or BENCHMARKS:
        say(f"\n== {name}: {BENCHMARKS[name]}")
        module = importlib.import_module(f"tests.bench.{name}")
        found[name] = module.measure(small=arguments.small)
        print_table(found[name])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows under their keys; a row may have keys the others lack."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(line: str) -> None:
    """Print a line at once, so that a run that is piped can be watched."""
    print(line, flush=True)  # noqa: T201 - the table is its output


if __name__ == "__main__":
    sys.exit(main())
