"""The one-shot drain, as deploy/README.md shows it and as schedulers run it, with its exit codes.

Needs pip's package index. Needs no root: a folder takes the machine's place.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from proofs.handbook import read_blocks
from proofs.lune import Lune
from proofs.machine import Machine, install
from proofs.steps import REPOSITORY, Proof, fail, until

ORDERS = 250
_SECTION = "Once over, as a backfill"
_INTERRUPTED, _HELD, _WRONG_KEY, _CONFIGURATION, _UNFINISHED, _USAGE = 130, 75, 77, 78, 3, 2


def prove(proof: Proof) -> None:
    """Drain in every way that is documented, and end in every way that has a code."""
    with proof.step("installed by the page's commands"):
        programs = install(proof.folder / "programs", REPOSITORY)
        options = f"--orders {ORDERS} --speed 0 --rate-limit 0"
        lune = Lune(proof, programs / "bin" / "harvester", options)

    def machine(name: str) -> Machine:
        return Machine(proof, name, programs, lune)

    drains = _Drains(proof, machine, lune)
    drains.everything()
    drains.a_quarter()
    drains.a_customer()
    drains.by_key()
    drains.dry()
    drains.killed()
    drains.from_cron()
    ends = _Ends(proof, machine, lune)
    ends.something_missing()
    ends.interrupted()
    ends.held()
    ends.refused()
    ends.misconfigured()


class _Drains:
    """The lines of the page's section, each on a machine of its own."""

    def __init__(self, proof: Proof, machine: Callable[[str], Machine], lune: Lune) -> None:
        self._proof = proof
        self._machine = machine
        self._lune = lune
        self._commands, self._cron, _ = read_blocks()[_SECTION]
        self._all: dict[str, Any] = {}

    def _line(self, word: str) -> str:
        (line,) = [line for line in self._commands if word in line]
        return line

    def _drain(self, machine: Machine, line: str) -> set[str]:
        """Run a line of the page; return the orders whose certificates are in the archive."""
        machine.follow([f"cd {machine.root}; {line}"], REPOSITORY)
        files = machine.certificates()
        self._proof.seen = f"`{line}`: {machine.verify() if files else 'no certificates'}"
        return files

    def _complete(self, wanted: Callable[[dict[str, Any]], bool]) -> set[str]:
        rows = self._all.items()
        return {order for order, row in rows if row["status"] == "complete" and wanted(row)}

    def _expect(self, found: set[str], expected: set[str]) -> None:
        if not expected or found != expected:
            fail(f"{len(found)} certificates, not {len(expected)}: {self._proof.seen}")

    def everything(self) -> None:
        with self._proof.step("everything there is"):
            machine = self._machine("everything")
            files = self._drain(machine, self._line("--report"))
            self._all = machine.orders()
            self._expect(files, self._complete(lambda _: True))
            report = json.loads((machine.root / "drain.json").read_text("utf-8"))
            if report["exit_code"] != 0 or len(self._all) != ORDERS:
                fail(json.dumps(report)[:500])

    def a_quarter(self) -> None:
        with self._proof.step("a quarter"):
            first, last = _busiest_quarter(self._all)
            line = self._line("--since").replace("2026-01-01", first.isoformat())
            files = self._drain(self._machine("quarter"), line.replace("2026-03-31", f"{last}"))
            self._expect(files, self._complete(lambda row: first <= _day(row) <= last))

    def a_customer(self) -> None:
        with self._proof.step("a customer"):
            account = self._lune.accounts[1]
            line = self._line("--account").replace("ACCOUNT_ID", account).replace("30m", "1s")
            files = self._drain(self._machine("customer"), line)
            self._expect(files, self._complete(lambda row: bool(row["account_id"] == account)))

    def by_key(self) -> None:
        with self._proof.step("a list of idempotency keys"):
            machine = self._machine("keys")
            keys = [row["idempotency_key"] for row in self._all.values() if row["idempotency_key"]][
                :20
            ]
            (machine.root / "invoices.txt").write_text("\n".join(keys) + "\n", "utf-8")
            files = self._drain(machine, self._line("--key"))
            self._expect(files, self._complete(lambda _: True))
            tracked = {row["idempotency_key"] for row in machine.orders().values()}
            if not tracked.issuperset(keys):
                fail("not every key is known")

    def dry(self) -> None:
        with self._proof.step("a dry run writes nothing"):
            machine = self._machine("dry")
            files = self._drain(machine, self._line("--dry-run"))
            if files or machine.state.exists():
                fail(f"{machine.state} is there")

    def killed(self) -> None:
        with self._proof.step("killed in the middle, and run again"):
            machine = self._machine("killed")
            asked = self._lune.requests("certificate")
            drain = machine.start_command("run", "--drain")
            enough = len(self._complete(lambda _: True)) // 4
            until(lambda: len(machine.certificates()) > enough, "the first certificates")
            drain.kill()
            if drain.wait() != -signal.SIGKILL:
                fail("it had ended before it was killed")
            there = len(machine.certificates())
            self._expect(self._drain(machine, "harvester run --drain"), self._complete(bool))
            twice = self._lune.requests("certificate") - asked - len(machine.certificates())
            self._proof.seen = (
                f"{there} certificates when killed, {len(machine.certificates())} after, "
                f"{twice} asked for twice, {machine.verify()}"
            )

    def from_cron(self) -> None:
        with self._proof.step("from cron"):
            machine = self._machine("cron")
            [line] = self._cron
            command = " ".join(line.split()[5:])
            known = f"HOME={machine.root} HARVESTER_CONFIG={machine.config} PATH=/usr/bin:/bin"
            told = machine.follow([f"env -i {known} /bin/sh -c '{command}'"], REPOSITORY)
            self._expect(machine.certificates(), self._complete(bool))
            self._proof.seen = f"`{command}`: {len(machine.certificates())} certificates"
            if "ended with" in told:
                fail(told)


class _Ends:
    """Every exit code that a scheduler has to know."""

    def __init__(self, proof: Proof, machine: Callable[[str], Machine], lune: Lune) -> None:
        self._proof = proof
        self._lune = lune
        self._machine = machine("ends")

    def something_missing(self) -> None:
        with self._proof.step("3 while something owed cannot be had, then 0"):
            self._lune.ask("POST", "/faults", {"name": "certificate-missing"})
            self._machine.harvester("run", "--drain", exits=_UNFINISHED)
            missing = len(self._machine.orders("--certificate", "owed"))
            self._lune.ask("DELETE", "/faults/certificate-missing")
            self._machine.harvester("retry", "--all")
            self._machine.harvester("run", "--drain")
            left = len(self._machine.orders("--certificate", "owed"))
            self._proof.seen = f"{missing} missing, then {left}"
            if left or not missing:
                fail(self._proof.seen)

    def interrupted(self) -> None:
        with self._proof.step("130 when it is interrupted, and nothing is half done"):
            shutil.rmtree(self._machine.state)
            drain = self._machine.start_command("run", "--drain")
            until(lambda: len(self._machine.certificates()) > 5, "the first certificates")
            drain.send_signal(signal.SIGTERM)
            if (code := drain.wait(60)) != _INTERRUPTED:
                fail(f"it ended with {code}")
            self._proof.seen = self._machine.verify()

    def held(self) -> None:
        with self._proof.step("75 beside the service"):
            self._machine.start()
            self._machine.harvester("run", "--drain", exits=_HELD)
            code = self._machine.stop()
            if code != 0:
                fail(f"the service ended with {code}")

    def refused(self) -> None:
        with self._proof.step("77 for a key that Lune refuses"):
            self._machine.key.write_text("key-of-somebody-else")
            self._machine.harvester("run", "--drain", exits=_WRONG_KEY)
            self._machine.key.write_text(self._lune.key)

    def misconfigured(self) -> None:
        with self._proof.step("78 for a wrong configuration, 2 for a wrong command line"):
            good = self._machine.config.read_text("utf-8")
            self._machine.config.write_text(good + "lisen = 1\n", "utf-8")
            self._machine.harvester("run", "--drain", exits=_CONFIGURATION)
            self._machine.config.write_text(good, "utf-8")
            self._machine.harvester("run", "--drain", "--since", "soon", exits=_USAGE)
            self._machine.harvester("run", "--drain")
            self._proof.seen = self._machine.verify()


def _day(row: dict[str, Any]) -> date:
    return datetime.fromisoformat(row["created_at"]).astimezone(UTC).date()


def _busiest_quarter(orders: dict[str, Any]) -> tuple[date, date]:
    """Return the first and the last day of the quarter that has most orders, but not all."""
    quarters = Counter((_day(row).year, (_day(row).month - 1) // 3) for row in orders.values())
    ((year, quarter), _), *_ = quarters.most_common()
    following = date(year + (quarter == 3), (3 * quarter + 3) % 12 + 1, 1)
    return date(year, 3 * quarter + 1, 1), following - timedelta(days=1)
