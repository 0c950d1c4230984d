"""The units of deploy/systemd on a really booted systemd, against the sandbox of Lune.

Needs root on Debian or the like, and a package mirror the first time.
"""

from __future__ import annotations

import re
import subprocess

from proofs.debian import install_tools
from proofs.host import Host
from proofs.nspawn import TOOLS, Machine
from proofs.service import Service
from proofs.steps import REPOSITORY, Proof, fail, run

_FOLDER = REPOSITORY / "deploy" / "systemd"
UNITS = ("harvester.service", "harvester-drain.service", "harvester-drain.timer")


def prove(proof: Proof) -> None:
    """Install as deploy/README.md says, boot, and go through a service's life."""
    install_tools(TOOLS)
    with proof.step("the units are right and exposed to 1.1 of 10 at most"):
        proof.seen = _judge_units()
    with proof.step("a machine with the harvester installed as deploy/README.md says"):
        host = Host(proof, Machine(proof, _memory()))
        proof.seen = host.install()
        service = Service(proof, host)
    for what, act in (
        ("started, ready before Lune answers anything", service.starts),
        ("its status says how things stand", service.tells),
        ("its memory is bounded, and is enough", service.is_bounded),
        ("hooks run in the sandbox of the unit and cannot speak for it", service.runs_hooks),
        ("commands of root leave nothing that the service cannot open", service.bears_root),
        ("killed, it is started again", service.is_killed),
        ("hanging, it is aborted and started again", service.hangs),
        ("a bad configuration keeps the old one, a good one is taken up", service.reloads),
        (
            "a refused key is told; a new credential comes by a restart",
            service.replaces_credentials,
        ),
        ("a new key in a file that is named comes by a reload", service.reads_key_files),
        ("what a person has to mend is not tried again", service.gives_up),
        ("stopped within two seconds when nothing else is to be done", service.stops),
        ("a timer drains every night, and leaves it to a daemon", service.drains),
        ("rebooted, it goes on", service.reboots),
        ("upgraded, the ledger is migrated and kept", service.upgrades),
        ("the journal is readable and has priorities", service.logs),
        ("the machine goes down in good order", service.ends),
    ):
        with proof.step(what):
            proof.seen = "; ".join(filter(None, (act(), service.verify())))


def _memory() -> int:
    """Return the bytes that the unit bounds the service to."""
    text = (_FOLDER / UNITS[0]).read_text("utf-8")
    return int(re.findall(r"(?m)^MemoryMax=(\d+)M$", text)[0]) << 20


def _judge_units() -> str:
    found = []
    for name in UNITS:
        said = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", _FOLDER / name],
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
            _FOLDER / name,
        )
        found.append(judged.strip().splitlines()[-1].partition(" for ")[2])
    return ", ".join(found)
