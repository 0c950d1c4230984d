"""What is claimed of the ways to run the harvester, shown on the real thing, a line per step.

Needs Python 3.11 and its standard library; each proof says in its docstring what else.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

from proofs.steps import Proof

PROOFS = ("systemd", "docker", "backfill", "upgrade")


def main(arguments: Sequence[str]) -> int:
    """Run the named proofs; return 0 when every step held, 1 when one did not.

    A proof that this machine cannot run is named with the reason, and counts as failed where
    ``HARVESTER_REQUIRE_ALL`` is set.
    """
    # A proof that is ended clears up like one that failed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    parser = argparse.ArgumentParser(prog="deploy/prove", description=__doc__)
    parser.add_argument("proofs", nargs="+", choices=PROOFS, metavar="|".join(PROOFS))
    chosen = dict.fromkeys(parser.parse_args(arguments).proofs)
    held = [Proof(name).run(importlib.import_module(f"proofs.{name}").prove) for name in chosen]
    return 0 if all(held) else 1
