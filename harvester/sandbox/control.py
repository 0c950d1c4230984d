"""The sandbox's own endpoints, outside ``/v1``: what it saw, its faults, its clock."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from harvester.sandbox.clock import Clock
from harvester.sandbox.documents import timestamp
from harvester.sandbox.faults import Fault, Faults, make_fault
from harvester.sandbox.journal import Journal

_LONGEST_JUMP_S = 1_000_000_000


class Control:
    """Handlers that need no key: the server listens on loopback only."""

    def __init__(self, clock: Clock, faults: Faults, journal: Journal) -> None:
        self._clock = clock
        self._faults = faults
        self._journal = journal

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/_sandbox", self.show),
            web.post("/_sandbox/faults", self.add_fault),
            web.delete("/_sandbox/faults/{name}", self.remove_fault),
            web.post("/_sandbox/clock", self.advance),
        ]

    async def show(self, _: web.Request) -> web.Response:
        """Serve the clock, the active faults with their hits, and the counts of requests."""
        return web.json_response(
            {
                "clock": {"now": timestamp(self._clock.now()), "speed": self._clock.speed},
                "faults": [self._fault(fault) for fault in self._faults.active()],
                "requests": self._journal.as_document(),
                "peak_per_second": self._journal.peak,
            }
        )

    async def add_fault(self, request: web.Request) -> web.Response:
        """Make a fault active: ``{"name", "arg"?, "share"?, "times"?}``."""
        body = await _object(request)
        try:
            fault = make_fault(
                body.get("name"), body.get("arg"), body.get("share"), body.get("times")
            )
        except ValueError as error:
            raise _refused(str(error)) from None
        return web.json_response(self._fault(self._faults.add(fault)))

    async def remove_fault(self, request: web.Request) -> web.Response:
        """End a fault; 404 when it is not active."""
        if not self._faults.remove(request.match_info["name"]):
            raise web.HTTPNotFound
        return web.Response(status=204)

    async def advance(self, request: web.Request) -> web.Response:
        """Jump forward: ``{"advance": SIMULATED_SECONDS}``."""
        seconds = (await _object(request)).get("advance")
        if not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_JUMP_S:
            raise _refused(f"advance is a number of seconds, 0 to {_LONGEST_JUMP_S}")
        self._clock.advance(float(seconds))
        return web.json_response({"now": timestamp(self._clock.now())})

    def _fault(self, fault: Fault) -> dict[str, Any]:
        return {
            "name": fault.name,
            "arg": fault.arg,
            "share": fault.share,
            "times": fault.times,
            "hits": self._faults.hits[fault.name],
        }


async def _object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _refused("the body is a JSON object")
    return body


def _refused(rule: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=rule + "\n")
