"""The feed of events: numbered, from any number on, waiting a while for the next one if asked."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

from aiohttp import web

from harvester.domain.events import cloud_event
from harvester.ledger.database import Database
from harvester.ledger.events import KeptEvents, read_events
from harvester.web.parameters import Parameters
from harvester.web.problems import Problem

MOST_CHANGES: Final = 500
MOST_SECONDS: Final = 60
_CHANGES: Final = 100
_LARGEST: Final = 2**53 - 1
"""The largest whole number that every reader of JSON has."""

_EVERY: Final = 1.0
_MOST_WAITING: Final = 32
"""More would leave too few connections to others; who comes then is answered at once."""

_DIGITS: Final = re.compile(r"0|[1-9][0-9]{0,15}")


class Changes:
    """The handler. The ledger is looked at once a second while somebody waits."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting = 0

    async def list(self, request: web.Request) -> web.Response:
        """Answer with the events after a number; ``next`` is where to go on."""
        query = Parameters(request, "after", "wait", "limit")
        after = query.read("after", lambda text: _number(text, 0, _LARGEST))
        wait = query.read("wait", lambda text: _number(text, 0, MOST_SECONDS)) or 0
        limit = query.read("limit", lambda text: _number(text, 1, MOST_CHANGES)) or _CHANGES
        until = time.monotonic() + wait
        kept = await self._read(after, limit)
        if not kept.events and wait and self._waiting < _MOST_WAITING:
            self._waiting += 1
            try:
                while not kept.events and (left := until - time.monotonic()) > 0:
                    await asyncio.sleep(min(_EVERY, left))
                    kept = await self._read(after, limit)
            finally:
                self._waiting -= 1
        following = kept.before if after is None else after
        return web.json_response(
            {
                "changes": [cloud_event(event) for event in kept.events],
                "next": kept.events[-1].seq if kept.events else following,
            }
        )

    async def _read(self, after: int | None, limit: int) -> KeptEvents:
        kept = await read_events(self._database, after, limit)
        if after is not None and not kept.before <= after <= kept.newest:
            raise Problem(
                410,
                "not every event after this number is kept: begin again after `oldest`, and list "
                "the orders to learn what was missed",
                oldest=kept.before,
            )
        return kept


def _number(text: str, least: int, most: int) -> int:
    if _DIGITS.fullmatch(text) is None or not least <= int(text) <= most:
        raise ValueError(f"should be {least} to {most}")
    return int(text)
