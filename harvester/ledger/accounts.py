"""Accounts in the ledger: who they are, where their sweeps stand, who is parked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.dialects.sqlite import insert

from harvester.domain.events import EventType, NewEvent
from harvester.domain.instants import rfc3339
from harvester.domain.orders import Account
from harvester.ledger.conditions import is_due
from harvester.ledger.database import Database
from harvester.ledger.events import write_events
from harvester.ledger.schema import accounts

_SERVED = (
    accounts.c.id,
    accounts.c.name,
    accounts.c.mode,
    accounts.c.scope,
    accounts.c.currency,
    accounts.c.beneficiary,
    accounts.c.organisation_id,
    accounts.c.is_default,
)


@dataclass(frozen=True, slots=True)
class SweepMark:
    """Where the following of an account's listing stands.

    ``number`` is this sweep's; an order first recorded in a sweep up to ``joined`` was there
    when the listing was last read down to known ground, so a page of such orders ends a sweep.
    ``joined`` is 0 until the listing was once read to its end.
    """

    number: int
    joined: int


async def record_accounts(database: Database, found: Sequence[Account], at: datetime) -> None:
    """Insert or refresh accounts. Idempotent."""
    if not found:
        return
    async with database.transaction() as tx:
        for account in found:
            served = {
                "name": account.name,
                "mode": account.mode,
                "scope": account.scope,
                "currency": account.currency,
                "beneficiary": account.beneficiary,
                "organisation_id": account.organisation_id,
                "is_default": int(account.is_default),
                "last_seen_at": at,
            }
            statement = insert(accounts).values(
                id=account.id,
                first_seen_at=at,
                sweep_number=0,
                joined_sweep=0,
                next_sweep_at=at,
                **served,
            )
            await tx.execute(statement.on_conflict_do_update(index_elements=["id"], set_=served))


async def recorded_modes(database: Database) -> set[str]:
    """Return the modes (live, test) of all accounts ever recorded."""
    async with database.read() as connection:
        return set(await connection.scalars(select(accounts.c.mode).distinct()))


async def read_accounts(
    database: Database, account_ids: Collection[str] | None = None
) -> list[Account]:
    """Return recorded accounts, the default one first: those with these ids, or all."""
    query = select(*_SERVED).order_by(accounts.c.is_default.desc(), accounts.c.id)
    if account_ids is not None:
        query = query.where(accounts.c.id.in_(list(account_ids)))
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    return [Account(*row[:-1], bool(row.is_default)) for row in rows]


async def due_accounts(database: Database, now: datetime, horizon: datetime) -> set[str]:
    """Return ids of accounts whose newest page is due, parked ones whose time has come too."""
    due = select(accounts.c.id).where(is_due(accounts.c.next_sweep_at, now, horizon))
    async with database.read() as connection:
        return set(await connection.scalars(due))


async def parked_accounts(database: Database) -> set[str]:
    """Return ids of the accounts that are left alone for now."""
    parked = select(accounts.c.id).where(accounts.c.parked_reason.is_not(None))
    async with database.read() as connection:
        return set(await connection.scalars(parked))


async def begin_sweep(database: Database, account_id: str) -> SweepMark:
    """Start a sweep of the account under a new number; a number that is not used does no harm."""
    statement = (
        update(accounts)
        .where(accounts.c.id == account_id)
        .values(sweep_number=accounts.c.sweep_number + 1)
        .returning(accounts.c.sweep_number, accounts.c.joined_sweep)
    )
    async with database.transaction() as tx:
        number, joined = (await tx.execute(statement)).one()
    return SweepMark(number, joined)


async def finish_sweep(
    database: Database,
    account_id: str,
    mark: SweepMark,
    at: datetime,
    due: datetime,
    *,
    joined: bool,
) -> None:
    """Record a good sweep, lift a parking, and say when the next one is due. Idempotent."""
    this = update(accounts).where(accounts.c.id == account_id)
    this = this.values(last_sweep_at=at, next_sweep_at=due, parked_reason=None)
    if joined:
        this = this.values(joined_sweep=mark.number)
    async with database.transaction() as tx:
        await tx.execute(this)


async def postpone_sweep(database: Database, account_id: str, due: datetime) -> None:
    """Set an account's next sweep after a failed one. Idempotent."""
    this = update(accounts).where(accounts.c.id == account_id)
    async with database.transaction() as tx:
        await tx.execute(this.values(next_sweep_at=due))


async def park_account(
    database: Database, account_id: str, reason: str, until: datetime, at: datetime
) -> bool:
    """Leave an account alone until ``until``; True when it was not parked before. Idempotent."""
    this = accounts.c.id == account_id
    async with database.transaction() as tx:
        before = await tx.scalar(select(accounts.c.parked_reason).where(this))
        await tx.execute(
            update(accounts).where(this).values(parked_reason=reason, next_sweep_at=until)
        )
        if before is None:
            data = {"reason": reason, "until": rfc3339(until)}
            parked = NewEvent(EventType.ACCOUNT_PARKED, account_id, None, at, data)
            await write_events(tx, [parked])
    return before is None
