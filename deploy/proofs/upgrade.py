"""Every block of deploy/README.md, run: back up, upgrade, go back, restore, rebuild, move, new key.

From what is checked out to a next release, which is made of the same sources: its version is higher
and its schema has a revision more. Needs pip's package index. Needs no root: a folder takes the
machine's place.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from proofs.handbook import read_blocks
from proofs.lune import Lune
from proofs.machine import Machine, install, same
from proofs.releases import write_next_release
from proofs.steps import REPOSITORY, Proof, fail

ORDERS = 60
_OF_LUNE = ("status", "idempotency_key", "quantity", "metadata", "created_at")


def prove(proof: Proof) -> None:
    """Take a harvester with data through all that the page describes."""
    following = proof.folder / "next"
    schema = write_next_release(following)
    with proof.step("this release is installed, and has data"):
        programs = install(proof.folder / "programs", REPOSITORY)
        options = f"--orders {ORDERS} --speed 10000000 --rate-limit 0"
        lune = Lune(proof, programs / "bin" / "harvester", options)
        machine = Machine(proof, "old", programs, lune)
        machine.start()
        recorded = machine.settle(ORDERS)
        proof.seen = f"{_version(machine)}, {_counts(recorded)}"
    steps = _Steps(proof, machine, following, schema, recorded)
    steps.back_up()
    steps.upgrade()
    steps.go_back()
    steps.upgrade()
    steps.restore()
    steps.rebuild()
    steps.move(Machine(proof, "new", programs, lune))
    steps.replace_key()


class _Steps:
    """The page's sections, each on what the one before left."""

    def __init__(
        self, proof: Proof, machine: Machine, following: Path, schema: str, recorded: dict[str, Any]
    ) -> None:
        self._proof = proof
        self._machine = machine
        self._next = following
        self._schema = schema
        self._recorded = recorded
        self._blocks = read_blocks()

    def _follow(
        self, heading: str, checkout: Path = REPOSITORY, number: int = 0, typed: str = ""
    ) -> str:
        return self._machine.follow(self._blocks[heading][number], checkout, typed)

    def back_up(self) -> None:
        with self._proof.step("back up, while it runs"):
            self._follow("Back up")
            copied = len(list(self._machine.backups.glob("certificates/*/*/*.pdf")))
            if copied != len(self._machine.certificates()):
                fail(f"{copied} certificates were copied")
            self._proof.seen = f"{copied} certificates, {self._machine.verify()}"

    def upgrade(self) -> None:
        with self._proof.step("upgrade"):
            before = _version(self._machine)
            told = self._follow("Upgrade", self._next)
            if "fail" in told:
                fail(told)
            after = self._machine.settle(ORDERS)
            same(self._recorded, after, *_OF_LUNE, "first_seen_at", "certificate")
            version = _version(self._machine)
            self._proof.seen = f"{before} -> {version}, {self._machine.verify()}"
            if version == before or not version.endswith(f"schema {self._schema}"):
                fail(self._proof.seen)

    def go_back(self) -> None:
        with self._proof.step("go back to the release before"):
            self._follow("Go back to the release before")
            after = self._machine.settle(ORDERS)
            same(self._recorded, after, *_OF_LUNE, "first_seen_at", "certificate")
            version = _version(self._machine)
            self._proof.seen = f"{version}, {self._machine.verify()}"
            if version.endswith(f"schema {self._schema}"):
                fail(self._proof.seen)

    def restore(self) -> None:
        with self._proof.step("restore a backup"):
            self._follow("Restore a backup")
            after = self._machine.settle(ORDERS)
            same(self._recorded, after, *_OF_LUNE, "first_seen_at", "certificate")
            self._proof.seen = self._machine.verify()

    def rebuild(self) -> None:
        with self._proof.step("rebuild a lost ledger from Lune and the archive"):
            recovered, downloaded = self._machine.recovered(), self._machine.downloaded()
            told = self._follow("Rebuild a lost ledger")
            if "holds certificates" not in told:
                fail(f"doctor does not say that certificates are there:\n{told}")
            after = self._machine.settle(ORDERS)
            same(self._recorded, after, *_OF_LUNE)
            recovered = self._machine.recovered() - recovered
            downloaded = self._machine.downloaded() - downloaded
            self._proof.seen = f"{recovered} recovered, {downloaded} downloaded"
            if downloaded or recovered != len(self._machine.certificates()):
                fail(self._proof.seen)
            self._proof.seen += f", {self._machine.verify()}"

    def move(self, other: Machine) -> None:
        with self._proof.step("move to another machine"):
            before = self._machine.orders()
            self._follow("Move to another machine")
            shutil.copy(self._machine.backups / "harvester.tar.gz", other.backups)
            self._machine = other
            self._follow("Move to another machine", number=1)
            after = other.settle(ORDERS)
            unmoved = {order: _without_folder(row) for order, row in before.items()}
            moved = {order: _without_folder(row) for order, row in after.items()}
            same(unmoved, moved, *_OF_LUNE, "first_seen_at", "certificate")
            self._proof.seen = other.verify()

    def replace_key(self) -> None:
        with self._proof.step("replace the key"):
            key = self._machine.key.read_text("utf-8")
            self._machine.key.write_text("key-that-was-revoked")
            told = self._follow("Replace the key", typed=f"{key}\n")
            (self._proof.seen,) = [line for line in told.splitlines() if "accepts" in line]
            if (code := self._machine.stop()) != 0:
                fail(f"it ended with {code}")


def _version(machine: Machine) -> str:
    """Return which release is installed, and the schema of its ledger."""
    schema = json.loads(machine.harvester("db", "current", "--json"))["schema"]
    return f"{machine.harvester('--version').strip()}, schema {schema}"


def _counts(orders: dict[str, Any]) -> str:
    stored = sum(row["certificate"] is not None for row in orders.values())
    return f"{len(orders)} orders, {stored} certificates"


def _without_folder(row: dict[str, Any]) -> dict[str, Any]:
    certificate = row["certificate"]
    if certificate is None:
        return row
    return row | {"certificate": certificate | {"path": Path(certificate["path"]).name}}
