"""What passes between the harvest and its ledger: rows it asked for, marks it has to give back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from harvester.domain.lifecycle import Anomaly, Moved
from harvester.domain.orders import CertificateKind, CertificateState, SetAside, StoredFile
from harvester.domain.purchases import Purchase


@dataclass(frozen=True, slots=True)
class KnownOrder:
    """What the harvest has to know of an order in the ledger to go on with it.

    ``version`` is the newest recorded version of its certificate, 0 when there is none.
    """

    account_id: str
    id: str
    status: str
    created_at: datetime
    owed_since: datetime | None
    attempts: int
    version: int


@dataclass(frozen=True, slots=True)
class KnownCertificate:
    """A certificate version in the ledger."""

    version: int
    kind: CertificateKind
    file: StoredFile
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """A certificate version that lies in the archive and is to be recorded."""

    account_id: str
    order_id: str
    certificate: KnownCertificate
    cf_ray: str | None


@dataclass(frozen=True, slots=True)
class FiledCertificate:
    """A recorded certificate version with the order it belongs to.

    ``is_replaced``: its file was lost, Lune serves other bytes by now, and those are stored.
    """

    account_id: str
    order_id: str
    certificate: KnownCertificate
    is_replaced: bool


@dataclass(frozen=True, slots=True)
class MissingCertificate:
    """A certificate that should be in the archive and is not, and why."""

    account_id: str
    order_id: str
    state: CertificateState
    reason: str | None
    attempts: int
    next_try_at: datetime | None


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An order that can still change."""

    account_id: str
    order_id: str
    status: str
    next_check_at: datetime | None


@dataclass(slots=True)
class Recorded:
    """What one recorded answer changed.

    ``old`` says that every order on it was known before; ``place`` is the place of its first
    order in the account's listing, None while that cannot be told.
    """

    seen: int = 0
    new: int = 0
    moves: list[tuple[str, Moved]] = field(default_factory=list)
    anomalies: list[tuple[str, Anomaly]] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    old: bool = True
    oldest_created_at: datetime | None = None
    place: int | None = None
    hinted: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class SweepMark:
    """Where the following of an account's listing stands.

    ``number`` is this sweep's; an order first recorded in a sweep up to ``joined`` was there
    when the listing was last read down to known ground, so a page of such orders ends a sweep.
    ``joined`` is 0 until the listing was once read to its end.
    """

    number: int
    joined: int


@dataclass(frozen=True, slots=True)
class DueLook:
    """An open order whose look is due.

    ``place`` is where it stands in its account's listing, counted upwards: of two neighbours the
    newer one's is one higher. None while no page of the listing has shown it.
    """

    order_id: str
    place: int | None


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """Which orders are meant; None means any. ``since`` is inclusive, ``until`` exclusive.

    Both are about ``created_at``. ``certificate`` is a state of :class:`CertificateState` or
    ``none`` for orders that owe none.
    """

    accounts: frozenset[str] | None = None
    status: str | None = None
    certificate: str | None = None
    since: datetime | None = None
    until: datetime | None = None


EVERYTHING = OrderFilter()


@dataclass(frozen=True, slots=True)
class Intention:
    """A purchase written down before Lune was asked, and how it was settled, if it was."""

    account_id: str
    idempotency_key: str
    purchase: Purchase
    intended_at: datetime
    order_id: str | None
    refusal: str | None
