"""The chains of orders: transitions, each of them a move at an instant.

There are few moves (from one status to another, as seen by one source) and millions of
transitions: a move is written once, a transition refers to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from harvester.domain.lifecycle import Moved
from harvester.domain.orders import Source
from harvester.ledger.schema import moves, transitions

_APPEND = transitions.insert().values(
    seq=select(func.coalesce(func.max(transitions.c.seq), 0) + 1)
    .where(transitions.c.order_key == bindparam("b_order"))
    .scalar_subquery()
)


class Step(NamedTuple):
    """What is to be appended to an order's chain."""

    order_key: int
    move: Moved
    source: Source

    @property
    def words(self) -> tuple[str | None, str, str]:
        """The move apart from its instant."""
        return self.move.before, self.move.after, self.source


async def append_transitions(connection: AsyncConnection, steps: Sequence[Step]) -> None:
    """Append transitions within a transaction, each numbered on from its order's last."""
    if not steps:
        return
    keys = await _keys_of_moves(connection, {step.words for step in steps})
    rows = [
        {
            "b_order": step.order_key,
            "order_key": step.order_key,
            "move_key": keys[step.words],
            "observed_at": step.move.at,
        }
        for step in steps
    ]
    await connection.execute(_APPEND, rows)


async def _keys_of_moves(
    connection: AsyncConnection, wanted: Collection[tuple[str | None, str, str]]
) -> dict[tuple[str | None, str, str], int]:
    """Return the keys of moves by their words; those that are new are written."""
    ends = {after for _, after, _ in wanted}
    known = await connection.execute(select(moves).where(moves.c.to_status.in_(ends)))
    keys = {(row.from_status, row.to_status, row.source): row.key for row in known}
    for before, after, source in wanted - keys.keys():
        new = moves.insert().values(from_status=before, to_status=after, source=source)
        keys[before, after, source] = await connection.scalar(new.returning(moves.c.key))
    return keys
