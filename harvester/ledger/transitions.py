"""The chains of orders: transitions, each of them a move at an instant.

There are few moves (from one status to another, as seen by one source) and millions of
transitions: a move is written once, a transition refers to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import Moved
from harvester.domain.orders import Source
from harvester.ledger.schema import moves, transitions

_Words = tuple[str | None, str, str]

_APPEND = transitions.insert().values(
    seq=select(func.coalesce(func.max(transitions.c.seq), 0) + 1)
    .where(transitions.c.order_key == bindparam("b_order"))
    .scalar_subquery()
)


@dataclass(frozen=True, slots=True)
class NewTransition:
    """What is to be appended to an order's chain."""

    order_key: int
    move: Moved
    source: Source

    @property
    def words(self) -> _Words:
        """The move apart from its instant."""
        return self.move.before, self.move.after, self.source


async def append_transitions(tx: AsyncConnection, new: Sequence[NewTransition]) -> None:
    """Append within a transaction, each numbered on from its order's last."""
    if not new:
        return
    keys = await _keys_of_moves(tx, {one.words for one in new})
    rows = [
        {
            "b_order": one.order_key,
            "order_key": one.order_key,
            "move_key": keys[one.words],
            "observed_at": one.move.at,
        }
        for one in new
    ]
    await tx.execute(_APPEND, rows)


async def _keys_of_moves(tx: AsyncConnection, wanted: Collection[_Words]) -> dict[_Words, int]:
    """Return the keys of moves by their words; those that are new are written."""
    ends = {after for _, after, _ in wanted}
    known = await tx.execute(select(moves).where(moves.c.to_status.in_(ends)))
    keys: dict[_Words, int] = {
        (row.from_status, row.to_status, row.source): row.key for row in known
    }
    for before, after, source in set(wanted) - keys.keys():
        new = moves.insert().values(from_status=before, to_status=after, source=source)
        keys[before, after, source] = (await tx.scalars(new.returning(moves.c.key))).one()
    return keys
