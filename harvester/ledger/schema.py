"""The ledger's tables, for queries; the migrations make them.

Instants are INTEGER microseconds since 1970 UTC: exact, sortable, free of time zones. Lune's ids
are texts of 32 characters: an account and an order have theirs in their own row only, and other
rows refer to them by the integer ``key``, which is the ledger's own and never leaves it. What is
the same in very many rows is written once, too (``moves``, ``folders``). For those who read the
file by hand two views have all that in words: ``history`` the transitions, ``files`` the
certificates.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Dialect,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

from harvester.domain.instants import EPOCH, MICROSECOND


def _read(value: int | None) -> datetime | None:
    return None if value is None else EPOCH + value * MICROSECOND


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - the library's signature
        """Turn an aware datetime into microseconds; a naive one is a fault of ours."""
        return None if value is None else (value - EPOCH) // MICROSECOND

    def result_processor(
        self,
        dialect: Dialect,  # noqa: ARG002 - the library's signature
        coltype: object,  # noqa: ARG002 - the library's signature
    ) -> Callable[[Any], datetime | None]:
        """Turn microseconds into an aware datetime: without the detour that the library takes."""
        return _read


class Digest(TypeDecorator[str]):
    """A digest in hexadecimal, as the bytes that it is."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002 - the library's signature
        """Turn digits into bytes."""
        return None if value is None else bytes.fromhex(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - the library's signature
        """Turn bytes into digits."""
        return None if value is None else value.hex()


metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("currency", Text),
    Column("beneficiary", Text),
    Column("organisation_id", Text),
    Column("is_default", Integer, nullable=False),
    Column("first_seen_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    # Sweeps are numbered, not timed: a clock that steps back must not make new orders look known.
    Column("sweep_number", Integer, nullable=False),
    Column("joined_sweep", Integer, nullable=False),
    Column("last_sweep_at", Instant),
    Column("next_sweep_at", Instant, nullable=False),
    Column("parked_reason", Text),
)

orders = Table(
    "orders",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("account_key", Integer, ForeignKey("accounts.key"), nullable=False),
    Column("id", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("status", Text, nullable=False),
    Column("quantity", Text),
    Column("metadata", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("first_seen_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Column("changed_at", Instant, nullable=False),
    Column("next_check_at", Instant),
    Column("first_sweep", Integer, nullable=False),
    # The account's when the order was first seen; the account's own may change.
    Column("beneficiary", Text),
    # Since when Lune answers 404 for it.
    Column("not_found_since", Instant),
    Column("document_digest", LargeBinary, nullable=False),
    Column("certificate_state", Text),
    Column("owed_since", Instant),
    Column("attempts", Integer, nullable=False),
    Column("tried_at", Instant),
    Column("failure_reason", Text),
    # Where it stands in its account's listing, counted upwards; null until a page showed it.
    Column("position", Integer),
    # When it was found to stay in its status for too long; null again once it moved.
    Column("stuck_at", Instant),
)

documents = Table(
    "order_documents",
    metadata,
    Column("order_key", Integer, ForeignKey("orders.key"), primary_key=True),
    # The order as last served, without the end user's e-mail: JSON, deflated.
    Column("document", LargeBinary, nullable=False),
)

moves = Table(
    "moves",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("from_status", Text),
    Column("to_status", Text, nullable=False),
    Column("source", Text, nullable=False),
)

transitions = Table(
    "transitions",
    metadata,
    Column("order_key", Integer, ForeignKey("orders.key"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("move_key", Integer, ForeignKey("moves.key"), nullable=False),
    Column("observed_at", Instant, nullable=False),
)

anomalies = Table(
    "anomalies",
    metadata,
    Column("order_key", Integer, ForeignKey("orders.key"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("recorded", Text, primary_key=True),
    Column("served", Text, primary_key=True),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("count", Integer, nullable=False),
)

folders = Table(
    "folders",
    metadata,
    Column("key", Integer, primary_key=True),
    # With its slash at the end; of files that lie in none it is empty.
    Column("path", Text, nullable=False),
)

certificates = Table(
    "certificates",
    metadata,
    Column("order_key", Integer, ForeignKey("orders.key"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    # Its path in the archive is the folder's and this.
    Column("folder_key", Integer, ForeignKey("folders.key"), nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", Digest, nullable=False),
    Column("size", Integer, nullable=False),
    Column("stored_at", Instant, nullable=False),
    Column("cf_ray", Text),
    # When its file was found missing or changed; nothing once the same bytes were had again.
    Column("lost_at", Instant),
)

PATH: ColumnElement[str] = (folders.c.path + certificates.c.name).label("path")
"""Where a certificate's file lies, below the archive's root."""

rejected_orders = Table(
    "rejected_orders",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("reference", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("count", Integer, nullable=False),
)

purchases = Table(
    "purchases",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("idempotency_key", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("recorded_at", Instant, nullable=False),
    # Settled one way: an order there is, or why there is none.
    Column("settled_at", Instant),
    Column("order_id", Text),
    Column("refusal", Text),
)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("order_id", Text),
    Column("at", Instant, nullable=False),
    Column("data", Text, nullable=False),
)

receivers = Table(
    "receivers",
    metadata,
    Column("name", Text, primary_key=True),
    # Which events it wants, as JSON lists; null for any.
    Column("types", Text),
    Column("accounts", Text),
    Column("parked_reason", Text),
)

deliveries = Table(
    "deliveries",
    metadata,
    # One row for each event that a receiver wants, from the event to its delivery.
    Column("receiver", Text, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("attempts", Integer, nullable=False),
    # Null: at once.
    Column("next_attempt_at", Instant),
    Column("failure", Text),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    # The event's own id, or the digest of one that cannot be read.
    Column("reference", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("api_version", Text, nullable=False),
    Column("sequence", Text, nullable=False),
    Column("account_id", Text),
    Column("order_id", Text),
    Column("problem", Text),
    Column("is_stale", Integer, nullable=False),
    Column("signed_at", Instant, nullable=False),
    Column("received_at", Instant, nullable=False),
    # As it came, without the end user's e-mail: JSON, deflated.
    Column("document", LargeBinary, nullable=False),
)

hints = Table(
    "hints",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("order_id", Text, primary_key=True),
    Column("hinted_at", Instant, nullable=False),
    # The status it should have; null when it says no more than "ask".
    Column("status", Text),
    Column("sequence", Text, nullable=False),
    # When to ask for an order that is not in the ledger; any other has its own date.
    Column("due_at", Instant, nullable=False),
)
