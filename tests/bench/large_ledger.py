"""Make a ledger as years of orders leave it, without asking anybody: straight into its tables.

Orders of all accounts come mixed, in the order they were created, with ids that sort at random, so
that the pages of every index are as full as in life. Every hundredth order is open and due within
six hours; the others are complete, with all five transitions and a stored certificate.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harvester.domain.lifecycle import COMPLETE, PAID, PLACED, RECEIVED, RETIRING
from harvester.ledger import migrate

TRANSITIONS = (RECEIVED, PLACED, PAID, RETIRING, COMPLETE)
_OPEN_EVERY = 100
_APART = 60_000_000  # microseconds between two orders: a million are two years
_DUE_WITHIN = timedelta(hours=6)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LargeLedger:
    """Where it is, what is in it; ``bare_bytes`` is its size without the orders' documents."""

    path: Path
    orders: int
    accounts: int
    opens_at: datetime
    bare_bytes: int
    bytes: int

    def account_id(self, number: int) -> str:
        """Return the id of the account that an order belongs to."""
        return _identifier("account", _account(self, number))

    def order_id(self, number: int) -> str:
        """Return an order's id; the first order has number 0."""
        return _identifier("order", number)


def make_large_ledger(path: Path, orders: int, accounts: int) -> LargeLedger:
    """Make a ledger at ``path``, whose checks fall due from now on."""
    migrate.upgrade(path)
    now = datetime.now(UTC)
    ledger = LargeLedger(path, orders, accounts, now, 0, 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")
        _fill(connection, "accounts", _account_rows(ledger))
        _fill(connection, "orders", _order_rows(ledger))
        _fill(connection, "moves", _move_rows())
        _fill(connection, "transitions", _transition_rows(ledger))
        _fill(connection, "folders", _folder_rows(ledger))
        _fill(connection, "certificates", _certificate_rows(ledger))
        bare = _size(connection)
        _fill(connection, "order_documents", _document_rows(ledger))
        connection.execute("COMMIT")
        whole = _size(connection)
        connection.execute("PRAGMA journal_mode = WAL")
    return LargeLedger(path, orders, accounts, now, bare, whole)


def _fill(connection: sqlite3.Connection, table: str, rows: Iterator[dict[str, object]]) -> None:
    first = next(rows)
    names = ", ".join(first)
    marks = ", ".join(f":{name}" for name in first)
    statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"
    connection.execute(statement, first)
    connection.executemany(statement, rows)


def _size(connection: sqlite3.Connection) -> int:
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


def _account_rows(ledger: LargeLedger) -> Iterator[dict[str, object]]:
    at = _microseconds(ledger.opens_at)
    for number in range(ledger.accounts):
        yield {
            "key": _account_key(number),
            "id": _identifier("account", number),
            "name": f"Client {number}",
            "mode": "test",
            "scope": "client_account" if number else "account",
            "currency": "EUR",
            "beneficiary": f"Client {number} Ltd",
            "organisation_id": _identifier("organisation", 0),
            "is_default": int(number == 0),
            "first_seen_at": at,
            "last_seen_at": at,
            "sweep_number": 1,
            "joined_sweep": 1,
            "last_sweep_at": at,
            "next_sweep_at": at + _DUE_WITHIN // timedelta(microseconds=1),
        }


def _order_rows(ledger: LargeLedger) -> Iterator[dict[str, object]]:
    dice = random.Random(1)
    now = _microseconds(ledger.opens_at)
    positions = [0] * ledger.accounts
    for number in range(ledger.orders):
        account = _account(ledger, number)
        positions[account] += 1
        opened = number % _OPEN_EVERY == 0
        created = _created(ledger, number)
        yield {
            "key": _order_key(number),
            "account_key": _account_key(account),
            "id": ledger.order_id(number),
            "idempotency_key": f"INV-{number:08}",
            "status": _chain(number)[-1],
            "quantity": "1.25",
            "metadata": json.dumps({"invoice": f"{number:08}"}),
            "created_at": created,
            "first_seen_at": created + 1_000_000,
            "last_seen_at": now if opened else created + 6_000_000,
            "changed_at": created + 5_000_000,
            "next_check_at": now + dice.randrange(6 * 3_600_000_000) if opened else None,
            "first_sweep": 1,
            "beneficiary": f"Client {account} Ltd",
            "document_digest": number.to_bytes(8, "big"),
            "certificate_state": None if opened else "stored",
            "owed_since": None if opened else created + 5_000_000,
            "attempts": 0,
            "position": positions[account],
        }


def _transition_rows(ledger: LargeLedger) -> Iterator[dict[str, object]]:
    for number in range(ledger.orders):
        created = _created(ledger, number)
        for seq in range(1, len(_chain(number)) + 1):
            yield {
                "order_key": _order_key(number),
                "seq": seq,
                "move_key": seq,
                "observed_at": created + seq * 1_000_000,
            }


def _certificate_rows(ledger: LargeLedger) -> Iterator[dict[str, object]]:
    for number in range(ledger.orders):
        if number % _OPEN_EVERY == 0:
            continue
        order_id = ledger.order_id(number)
        yield {
            "order_key": _order_key(number),
            "version": 1,
            "kind": "final",
            "folder_key": _account_key(_account(ledger, number)),
            "name": f"{order_id}.pdf",
            "sha256": hashlib.sha256(order_id.encode()).digest(),
            "size": 61_440,
            "stored_at": _created(ledger, number) + 6_000_000,
        }


def _document_rows(ledger: LargeLedger) -> Iterator[dict[str, object]]:
    dice = random.Random(2)
    fields = {f"field_{number}": dice.randbytes(12).hex() for number in range(25)}
    document = zlib.compress(json.dumps(fields).encode())
    for number in range(ledger.orders):
        yield {
            "order_key": _order_key(number),
            "document": document,
        }


def _move_rows() -> Iterator[dict[str, object]]:
    before = None
    for status in TRANSITIONS:
        yield {"from_status": before, "to_status": status, "source": "sweep"}
        before = status


def _folder_rows(ledger: LargeLedger) -> Iterator[dict[str, object]]:
    for number in range(ledger.accounts):
        yield {"path": f"{_identifier('account', number)}/2026-01/"}


def _account(ledger: LargeLedger, number: int) -> int:
    return _scatter(number) % ledger.accounts


def _account_key(account: int) -> int:
    return account + 1


def _order_key(number: int) -> int:
    return number + 1


def _chain(number: int) -> tuple[str, ...]:
    if number % _OPEN_EVERY:
        return TRANSITIONS
    return TRANSITIONS[: 1 + number // _OPEN_EVERY % (len(TRANSITIONS) - 1)]


def _created(ledger: LargeLedger, number: int) -> int:
    return _microseconds(ledger.opens_at) - (ledger.orders - number) * _APART


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _scatter(number: int) -> int:
    return number * 2_654_435_761 >> 7  # Knuth's multiplicative hash


def _identifier(kind: str, number: int) -> str:
    """Return 32 letters and digits, as Lune's ids are."""
    digest = hashlib.blake2b(f"{kind} {number}".encode(), digest_size=24).digest()
    return base64.b64encode(digest, b"aZ").decode()
