"""The nouns: accounts, orders, pages, rejected orders, what became of a certificate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_identifier(text: str) -> bool:
    """Tell whether a served id is safe to put in a path: 1 to 64 of ``A-Za-z0-9_-``.

    Lune's ids are 32 letters and digits (the schema's examples); anything else could name
    another folder and is rejected.
    """
    return _IDENTIFIER.fullmatch(text) is not None


class Source(StrEnum):
    """What made us ask when a status was observed."""

    SWEEP = "sweep"
    CHECK = "check"
    WEBHOOK = "webhook"
    TRACK = "track"
    DRAIN = "drain"


class CertificateState(StrEnum):
    """What became of an order's certificate; ours, apart from Lune's status."""

    OWED = "owed"
    STORED = "stored"
    FAILED = "failed"


class CertificateKind(StrEnum):
    """``interim`` was served before completion and may still change; ``final`` after it."""

    INTERIM = "interim"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Account:
    """An account or client account, as Lune served it.

    ``mode`` is Lune's ``type`` (live or test). ``beneficiary`` is the name on *future*
    retirements, so it is kept with each order when that is first seen. ``is_default`` marks the
    account the key acts on without a ``Lune-Account`` header.
    """

    id: str
    name: str
    mode: str
    scope: str
    currency: str | None
    beneficiary: str | None
    organisation_id: str | None
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """An order as Lune served it once.

    ``quantity`` is tonnes as a decimal string. ``document`` is the served object without the
    end user's e-mail address, kept for the auditor.
    """

    id: str
    status: str
    created_at: datetime
    idempotency_key: str | None
    quantity: str | None
    metadata: Mapping[str, Any]
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RejectedOrder:
    """A listed object that could not be read as an order.

    ``reference`` is its served id made printable and shortened, or a digest where it has none;
    ``reason`` never quotes served values; ``document`` is the object as JSON, shortened.
    """

    reference: str
    reason: str
    document: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OrderPage:
    """One page of a listing, newest first; ``next_cursor`` is None on the last page."""

    orders: tuple[Order, ...]
    rejected: tuple[RejectedOrder, ...] = ()
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """Which orders are meant; None means any. ``since`` is inclusive, ``until`` exclusive.

    Both are about ``created_at``. ``certificate`` is a state of :class:`CertificateState` or
    ``none`` for orders that owe none.
    """

    accounts: frozenset[str] | None = None
    idempotency_key: str | None = None
    status: str | None = None
    certificate: str | None = None
    since: datetime | None = None
    until: datetime | None = None


EVERYTHING = OrderFilter()


@dataclass(frozen=True, slots=True)
class CertificateBody:
    """The bytes served as a certificate, unchecked, their media type, the request's CF-Ray."""

    data: bytes = field(repr=False)
    content_type: str
    cf_ray: str | None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file under its final name: path below the archive's root, SHA-256, size in bytes."""

    path: str
    sha256: str
    size: int
