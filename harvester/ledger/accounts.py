"""Accounts in the ledger: who they are, where their sweeps stand, who is parked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.events import EventType, NewEvent
from harvester.domain.orders import Account
from harvester.domain.records import SweepMark
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


class AccountRecords:
    """The account part of :class:`harvester.domain.ledger.Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record_accounts(self, found: Sequence[Account], at: datetime) -> None:
        """See the port."""
        if not found:
            return

        async def work(connection: AsyncConnection) -> None:
            for account in found:
                served: dict[str, Any] = {
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
                await connection.execute(
                    statement.on_conflict_do_update(index_elements=["id"], set_=served)
                )

        await self._database.write(work)

    async def modes(self) -> set[str]:
        """See the port."""
        async with self._database.read() as connection:
            return set(await connection.scalars(select(accounts.c.mode).distinct()))

    async def accounts(self, ids: Collection[str] | None = None) -> list[Account]:
        """See the port."""
        query = select(*_SERVED).order_by(accounts.c.is_default.desc(), accounts.c.id)
        if ids is not None:
            query = query.where(accounts.c.id.in_(list(ids)))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [Account(*row[:-1], bool(row.is_default)) for row in rows]

    async def due_accounts(self, now: datetime, horizon: datetime) -> set[str]:
        """See the port."""
        due = select(accounts.c.id).where(is_due(accounts.c.next_sweep_at, now, horizon))
        async with self._database.read() as connection:
            return set(await connection.scalars(due))

    async def parked_accounts(self) -> set[str]:
        """See the port."""
        parked = select(accounts.c.id).where(accounts.c.parked_reason.is_not(None))
        async with self._database.read() as connection:
            return set(await connection.scalars(parked))

    async def begin_sweep(self, account_id: str) -> SweepMark:
        """See the port."""

        async def work(connection: AsyncConnection) -> SweepMark:
            row = (
                await connection.execute(
                    update(accounts)
                    .where(accounts.c.id == account_id)
                    .values(sweep_number=accounts.c.sweep_number + 1)
                    .returning(accounts.c.sweep_number, accounts.c.joined_sweep)
                )
            ).one()
            return SweepMark(row.sweep_number, row.joined_sweep)

        return await self._database.write(work)

    async def finish_sweep(
        self, account_id: str, mark: SweepMark, at: datetime, due: datetime, *, joined: bool
    ) -> None:
        """See the port."""
        values: dict[str, Any] = {"last_sweep_at": at, "next_sweep_at": due, "parked_reason": None}
        if joined:
            values["joined_sweep"] = mark.number
        await self._update_account(account_id, values)

    async def park_account(
        self, account_id: str, reason: str, until: datetime, at: datetime
    ) -> bool:
        """See the port."""

        async def work(connection: AsyncConnection) -> bool:
            this = accounts.c.id == account_id
            before = await connection.scalar(select(accounts.c.parked_reason).where(this))
            await connection.execute(
                update(accounts).where(this).values(parked_reason=reason, next_sweep_at=until)
            )
            if before is None:
                data = {"reason": reason, "until": until.isoformat().replace("+00:00", "Z")}
                parked = NewEvent(EventType.ACCOUNT_PARKED, account_id, None, at, data)
                await write_events(connection, [parked])
            return before is None

        return await self._database.write(work)

    async def postpone_sweep(self, account_id: str, due: datetime) -> None:
        """See the port."""
        await self._update_account(account_id, {"next_sweep_at": due})

    async def _update_account(self, account_id: str, values: dict[str, Any]) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(
                update(accounts).where(accounts.c.id == account_id).values(**values)
            )

        await self._database.write(work)
