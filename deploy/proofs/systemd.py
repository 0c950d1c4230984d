"""The units of deploy/systemd on a really booted systemd, against the sandbox of Lune.

Needs root on Debian or the like, and a package mirror the first time: a plain Debian is kept in
``$HARVESTER_PROVE_CACHE`` (else below ``$XDG_CACHE_HOME`` or ``~/.cache``).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from proofs.nspawn import Machine, need_tools, plain_tree
from proofs.service import Service
from proofs.steps import REPOSITORY, Proof, fail, run

UNITS = ("harvester.service", "harvester-drain.service", "harvester-drain.timer")


def prove(proof: Proof) -> None:
    """Install as the README says, boot, and go through a service's life."""
    need_tools()
    with proof.step("the units are right and exposed to 1.1 of 10 at most"):
        proof.seen = _judge_units()
    with proof.step("a machine with the harvester installed as the README says"):
        service = Service(proof, Machine(proof, plain_tree(_cache())))
        proof.seen = service.install()
    for what, act in (
        ("started, ready before Lune answers anything", service.starts),
        ("its status says how things stand", service.tells),
        ("hooks run in the sandbox of the unit and cannot speak for it", service.runs_hooks),
        ("commands of root leave nothing that the service cannot open", service.bears_root),
        ("killed, it is started again", service.is_killed),
        ("hanging, it is aborted and started again", service.hangs),
        ("a bad configuration keeps the old one, a good one is taken up", service.reloads),
        ("a refused key is told, a new one is taken up by a reload", service.changes_keys),
        ("what a person has to mend is not tried again", service.gives_up),
        ("stopped within two seconds", service.stops),
        ("the timer's drain files what there is, and leaves it to a daemon", service.drains),
        ("rebooted, it goes on", service.reboots),
        ("upgraded, the ledger is migrated and kept", service.upgrades),
        ("the journal is readable and has priorities", service.logs),
        ("the machine goes down in good order", service.ends),
    ):
        with proof.step(what):
            proof.seen = "; ".join(filter(None, (act(), service.verify())))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HARVESTER_PROVE_CACHE") or Path(base, "harvester-prove")).resolve()


def _judge_units() -> str:
    units = REPOSITORY / "deploy" / "systemd"
    found = []
    for name in UNITS:
        said = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", units / name],
            capture_output=True,
            text=True,
            check=False,
        )
        # All that may be wrong here is that the program is not installed on this machine.
        odd = [line for line in said.stderr.splitlines() if "is not executable" not in line]
        if odd:
            fail("\n".join(odd))
    for name in UNITS[:2]:
        judged = run(
            *("systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=11"),
            units / name,
        )
        found.append(judged.strip().splitlines()[-1].partition(" for ")[2])
    return ", ".join(found)
