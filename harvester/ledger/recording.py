"""Record served orders: what each observation changes, and the statements that write it down.

A page is looked at first and only the differences are written: most pages change nothing.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.errors import LedgerDamaged
from harvester.domain.events import status_changed
from harvester.domain.lifecycle import (
    Anomaly,
    AnomalyKind,
    Moved,
    Observation,
    Unchanged,
    is_known,
)
from harvester.domain.orders import Account, Order, OrderPage, SetAside, Source
from harvester.domain.records import Recorded, SweepMark
from harvester.domain.schedule import Cadence
from harvester.ledger.chains import Step, append_transitions
from harvester.ledger.events import write_events
from harvester.ledger.hints import answer_hints
from harvester.ledger.judgement import date_looks, judge, owing
from harvester.ledger.keys import account_key
from harvester.ledger.schema import accounts, anomalies, documents, orders, set_aside

_DIGEST_BYTES = 8
"""Enough to notice that a document changed; nothing is trusted on it."""


class Recorder:
    """Writes one answer's orders within one transaction."""

    def __init__(
        self,
        connection: AsyncConnection,
        account: Account,
        source: Source,
        at: datetime,
        cadence: Cadence,
        sweep: SweepMark | None,
        place: int | None,
    ) -> None:
        self._connection = connection
        self._account = account
        self._source = source
        self._at = at
        self._cadence = cadence
        self._sweep = sweep
        self._place = place
        self._keys: dict[str, int] = {}
        self._steps: list[Step] = []
        self._recorded = Recorded()

    async def record(self, page: OrderPage) -> Recorded:
        """Write a page's orders and what was set aside; return what changed."""
        found = {order.id: order for order in page.orders}  # an id twice on a page is one order
        known = await self._known(found)
        judged = [
            (
                known.get(order.id),
                order,
                *judge(known.get(order.id), order, self._at, self._cadence),
            )
            for order in found.values()
        ]
        date_looks(
            ((row, order, values) for row, order, _, values in judged), self._at, self._cadence
        )
        looked_at = ((order, values) for _, order, _, values in judged)
        self._recorded.hinted = await answer_hints(
            self._connection, self._account.id, looked_at, self._at
        )
        await self._find_place(found, known)
        still: list[dict[str, Any]] = []
        new: list[tuple[Order, dict[str, Any]]] = []
        for number, (row, order, observation, values) in enumerate(judged):
            if (row is None or row.place is None) and self._place is not None:
                values["place"] = self._place - number
            if row is None:
                new.append((order, values))
            elif isinstance(observation, Unchanged) and not _news(row, order, values):
                still.append({"b_key": row.key, "due": values["next_check_at"]})
            else:
                await self._update(row, order, values)
                await self._note(order.id, observation)
            self._recorded.old &= self._is_old(row)
        await self._insert(new)
        await append_transitions(self._connection, self._steps)
        await self._touch(still)
        await self._settle_set_aside(found, page.set_aside)
        moves = self._recorded.moves
        told = [status_changed(self._account.id, found[order_id], move) for order_id, move in moves]
        await write_events(self._connection, told)
        self._recorded.seen = len(found)
        self._recorded.place = self._place
        self._recorded.old &= bool(found)  # of a page that cannot be read nothing is known
        self._recorded.oldest_created_at = min(
            (order.created_at for order in found.values()), default=None
        )
        return self._recorded

    async def _known(self, found: Iterable[str]) -> dict[str, Any]:
        rows = await self._connection.execute(
            select(
                orders.c.key,
                orders.c.id,
                orders.c.status,
                orders.c.changed_at,
                orders.c.first_seen_at,
                orders.c.place,
                orders.c.next_check_at,
                orders.c.certificate_state,
                orders.c.missing_since,
                orders.c.document_digest,
                orders.c.first_sweep,
            ).where(
                orders.c.account_key == account_key(self._account.id),
                orders.c.id.in_(list(found)),
            )
        )
        known = {row.id: row for row in rows}
        self._keys = {order_id: row.key for order_id, row in known.items()}
        return known

    async def _find_place(self, found: Iterable[str], known: Mapping[str, Any]) -> None:
        """Find the place of the answer's first order by those on it whose place is known."""
        for number, order_id in enumerate(found):
            row = known.get(order_id)
            if row is not None and row.place is not None:
                self._place = row.place + number
                return
        if self._place is None and self._sweep is not None:
            placed = select(orders.c.key).where(
                orders.c.account_key == account_key(self._account.id), orders.c.place.is_not(None)
            )
            if await self._connection.scalar(placed.limit(1)) is None:
                self._place = 0  # the first page ever: older orders get places below

    async def _shared_by_new(self) -> dict[str, Any]:
        this = select(accounts.c.key, accounts.c.sweep_number).where(
            accounts.c.id == self._account.id
        )
        # Without an account the ledger's rules refuse its orders.
        key, number = (await self._connection.execute(this)).first() or (None, 0)
        return {
            "account_key": key,
            "first_seen_at": self._at,
            # Found apart from a sweep: no sweep up to now has read the listing down to it.
            "first_sweep": number + 1 if self._sweep is None else self._sweep.number,
            "beneficiary": self._account.beneficiary,
        }

    def _is_old(self, row: Any | None) -> bool:
        joined = self._sweep.joined if self._sweep is not None else 0
        return row is not None and row.first_sweep <= joined

    async def _insert(self, new: Sequence[tuple[Order, dict[str, Any]]]) -> None:
        if not new:
            return
        shared = await self._shared_by_new()
        rows = [
            shared
            | owing(None, None)
            | {"place": None}
            | {"id": order.id, "created_at": order.created_at}
            | _served(order)
            | values
            for order, values in new
        ]
        made = await self._connection.execute(
            orders.insert().returning(orders.c.id, orders.c.key), rows
        )
        self._keys |= {row.id: row.key for row in made}
        await self._connection.execute(
            documents.insert(),
            [{"order_key": self._keys[order.id], "document": _deflated(order)} for order, _ in new],
        )
        self._recorded.new += len(new)
        for order, _ in new:
            await self._note(order.id, Moved(None, order.status, self._at))

    async def _update(self, row: Any, order: Order, values: Mapping[str, Any]) -> None:
        # Guarded by the status that was judged: a row that moved in between is not overwritten.
        result = await self._connection.execute(
            update(orders)
            .where(orders.c.key == row.key, orders.c.status == row.status)
            .values(**_served(order), **values)
        )
        if result.rowcount != 1:
            raise LedgerDamaged(f"order {order.id} changed while it was being recorded")
        await self._connection.execute(
            update(documents)
            .where(documents.c.order_key == row.key)
            .values(document=_deflated(order))
        )

    async def _touch(self, still: Sequence[dict[str, Any]]) -> None:
        if not still:
            return
        await self._connection.execute(
            update(orders)
            .where(orders.c.key == bindparam("b_key"))
            .values(last_seen_at=self._at, next_check_at=bindparam("due")),
            still,
        )

    async def _note(self, order_id: str, observation: Observation) -> None:
        if isinstance(observation, Moved):
            hinted = order_id in self._recorded.hinted
            source = Source.WEBHOOK if hinted else self._source
            self._steps.append(Step(self._keys[order_id], observation, source))
            self._recorded.moves.append((order_id, observation))
            await self._note_unknown(order_id, observation)
        elif isinstance(observation, Anomaly):
            await self._count(order_id, observation)

    async def _note_unknown(self, order_id: str, move: Moved) -> None:
        if not is_known(move.after):
            await self._count(
                order_id, Anomaly(move.before or "", move.after, AnomalyKind.UNKNOWN, self._at)
            )

    async def _count(self, order_id: str, anomaly: Anomaly) -> None:
        await count_anomaly(self._connection, self._keys[order_id], anomaly)
        self._recorded.anomalies.append((order_id, anomaly))

    async def _settle_set_aside(self, found: Iterable[str], things: Sequence[SetAside]) -> None:
        mine = set_aside.c.account_id == self._account.id
        await self._connection.execute(
            set_aside.delete().where(mine, set_aside.c.reference.in_(list(found)))
        )
        for thing in things:
            text = {"reason": thing.reason, "document": thing.document, "last_at": self._at}
            statement = insert(set_aside).values(
                account_id=self._account.id,
                reference=thing.reference,
                first_at=self._at,
                count=1,
                **text,
            )
            await self._connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["account_id", "reference"],
                    set_={**text, "count": set_aside.c.count + 1},
                )
            )
        self._recorded.set_aside += things


async def count_anomaly(connection: AsyncConnection, order_key: int, anomaly: Anomaly) -> None:
    """Record an anomaly, or count it once more: a status served wrongly for a year is one row."""
    statement = insert(anomalies).values(
        order_key=order_key,
        kind=anomaly.kind,
        recorded=anomaly.recorded,
        served=anomaly.served,
        first_at=anomaly.at,
        last_at=anomaly.at,
        count=1,
    )
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["order_key", "kind", "recorded", "served"],
            set_={"last_at": anomaly.at, "count": anomalies.c.count + 1},
        )
    )


def _served(order: Order) -> dict[str, Any]:
    return {
        "idempotency_key": order.idempotency_key,
        "quantity": order.quantity,
        "metadata": _as_json(order.metadata).decode(),
        "document_digest": _digest(order),
    }


def _deflated(order: Order) -> bytes:
    return zlib.compress(_as_json(order.document))


def _news(row: Any, order: Order, values: Mapping[str, Any]) -> bool:
    return (
        "certificate_state" in values
        or "place" in values
        or row.missing_since is not None
        or row.document_digest != _digest(order)
    )


def _digest(order: Order) -> bytes:
    return hashlib.sha256(_as_json(order.document)).digest()[:_DIGEST_BYTES]


def _as_json(value: Mapping[str, Any]) -> bytes:
    # Decimal values (numbers Lune documents as strings) keep their digits.
    return json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":")).encode()
