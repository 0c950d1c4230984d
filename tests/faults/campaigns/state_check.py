"""Is a state that a crash left one the harvester promises? Read with SQLite and hashes alone."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from tests.faults.campaigns.disk_model import State
from tests.faults.campaigns.storage_variants import STORED
from tests.faults.campaigns.strace_log import Op

LEDGER = "data/harvester.db"
ARCHIVE = "data/certificates"
"""Below the ledger's folder, as the defaults have it: no folder's entry is durable by luck."""


@dataclass(slots=True)
class Promises:
    """What was acknowledged so far: certificates stored, and orders with a status by a good end."""

    stored: set[str] = field(default_factory=set)
    statuses: dict[str, str] = field(default_factory=dict)

    def note(self, op: Op) -> None:
        """Take in a step, if it acknowledges something."""
        if op.kind == "logged" and STORED in op.data:
            self.stored |= {
                json.loads(line)["order"] for line in op.data.splitlines() if STORED in line
            }
        elif op.kind == "exit":
            self.statuses = json.loads(op.data)
            self.stored |= {
                order for order, status in self.statuses.items() if status == "complete"
            }

    def fingerprint(self) -> int:
        """Return a number that is the same for equal promises."""
        return hash((frozenset(self.stored), frozenset(self.statuses.items())))

    def copy(self) -> Promises:
        """Return these promises, to be added to."""
        return Promises(set(self.stored), dict(self.statuses))


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a ledger says once SQLite has recovered it: rows are name and SHA-256 by order."""

    damage: tuple[str, ...]
    rows: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    reached: frozenset[tuple[str, str]] = frozenset()


class StateCheck:
    """Checks states in a scratch folder; ``certificates`` are SHA-256 by order as Lune has them."""

    def __init__(self, certificates: Mapping[str, str], scratch: Path) -> None:
        self._certificates = certificates
        self._scratch = scratch
        self._ledgers: dict[int, Ledger] = {}

    def violations(self, state: State, promises: Promises) -> list[str]:
        """Return what is broken, each beginning with its kind and a colon; none if all is well."""
        files = {name: hashlib.sha256(data).hexdigest() for name, data in _files(state)}
        found = [
            f"torn file: {name}"
            for name, sha256 in files.items()
            if sha256 != self._certificates.get(PurePath(name).stem)
        ]
        ledger = self._ledger(state)
        found += [f"ledger damaged: {line}" for line in ledger.damage]
        for order, (name, sha256) in ledger.rows.items():
            if name not in files:
                found.append(f"row without file: {order}")
            elif files[name] != sha256:
                found.append(f"row with a torn file: {order}")
        for order in promises.stored - ledger.rows.keys():
            found.append(f"acknowledged: the certificate of {order} has no row")
        for order, status in promises.statuses.items():
            if (order, status) not in ledger.reached:
                found.append(f"acknowledged: {order} is not known to be {status}")
        return found

    def _ledger(self, state: State) -> Ledger:
        """Recover the ledger in a fresh folder; the same bytes are read once."""
        parts = {suffix: state.read(f"{LEDGER}{suffix}") for suffix in ("", "-wal", "-journal")}
        key = hash(tuple(parts.values()))
        if key not in self._ledgers:
            with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
                path = Path(folder) / "ledger.db"
                for suffix, data in parts.items():
                    if data is not None:
                        Path(f"{path}{suffix}").write_bytes(data)
                self._ledgers[key] = _read_ledger(path)
        return self._ledgers[key]


def _files(state: State) -> Iterator[tuple[str, bytes]]:
    for path, number in state.names:
        name = path.removeprefix(f"{ARCHIVE}/")
        if name != path and not name.startswith("."):
            yield name, state.contents[number]


def _read_ledger(path: Path) -> Ledger:
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # nothing here has to last
            damage = [line for (line,) in connection.execute("PRAGMA integrity_check")]
            damage += map(str, connection.execute("PRAGMA foreign_key_check"))
            query = "SELECT name FROM sqlite_master WHERE name = 'certificates'"
            if damage != ["ok"] or not connection.execute(query).fetchall():
                return Ledger(tuple(line for line in damage if line != "ok"))
            rows = connection.execute("SELECT order_id, path, sha256 FROM files")
            reached = connection.execute("SELECT order_id, to_status FROM history")
            by_order = {order: (name, sha256) for order, name, sha256 in rows}
            return Ledger((), by_order, frozenset(reached))
    except sqlite3.DatabaseError as error:
        return Ledger((str(error),))
