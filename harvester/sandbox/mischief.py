"""How each fault is done: at the edge, on a page of orders, and on the wire."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

from aiohttp import web

from harvester.sandbox.documents import Document
from harvester.sandbox.faults import Fault, Faults
from harvester.sandbox.refusals import ApiError

_PAGE = "<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"
_RESET = struct.pack("ii", 1, 0)  # linger on, for no time: closing sends RST


def web_page(title: str, status: int = 200) -> web.Response:
    """Return a small web page, as proxies put in the place of an answer."""
    return web.Response(status=status, text=_PAGE.format(title), content_type="text/html")


async def at_the_edge(faults: Faults, stopping: asyncio.Event) -> web.Response | None:
    """Do what happens before a request reaches the API; None lets it through."""
    if slow := faults.strike("slow"):
        await asyncio.sleep(float(slow.arg or 0))
    if faults.strike("hang"):
        await stopping.wait()
        return web.Response(status=503)
    for name, answer in _AT_THE_EDGE.items():
        if fault := faults.strike(name):
            return answer(fault, faults)
    return None


def _too_many(fault: Fault, _: Faults) -> web.Response:
    response = ApiError(429, message="Too many requests, please try again later.").response()
    if fault.arg is not None:
        response.headers["Retry-After"] = fault.arg
    return response


def _server_error(fault: Fault, faults: Faults) -> web.Response:
    status = int(fault.arg) if fault.arg else 500 if faults.coin() else 502
    # Lune itself answers 500 and has nothing to add; anything else comes from the edge.
    return web.Response(status=500) if status == 500 else web_page(f"Error {status}", status)


_AT_THE_EDGE: dict[str, Callable[[Fault, Faults], web.Response]] = {
    "edge-block": lambda _, __: web_page("Just a moment...", 403),
    "redirect": lambda fault, _: web.Response(status=302, headers={"Location": fault.arg or ""}),
    "server-errors": _server_error,
    "rate-limit": _too_many,
    "not-json": lambda _, __: web_page("Welcome to the guest network"),
}


async def send_part(
    request: web.Request, whole: web.Response, *, reset: bool
) -> web.StreamResponse:
    """Send half of an answer under its whole Content-Length, then drop the connection.

    With ``reset`` the client sees a reset, else an orderly end.
    """
    body = whole.body if isinstance(whole.body, bytes) else b""
    part = web.StreamResponse(status=whole.status, headers={"Content-Type": whole.content_type})
    part.content_length = len(body)
    await part.prepare(request)
    await part.write(body[: len(body) // 2])
    transport = request.transport
    if transport is not None:
        if reset:
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET
            )
        transport.close()
    return part


def spoil_page(page: Document, here: str | None, faults: Faults) -> None:
    """Break a page of orders in place, as the active faults have it.

    ``here`` is the cursor that asks for what this page was asked for, as far as there is one.
    """
    rows: list[Any] = page["data"]
    if rows and faults.strike("malformed-order"):
        middle = len(rows) // 2
        way = faults.hits["malformed-order"] % len(_BREAKS)
        rows[middle] = _BREAKS[way](rows[middle])
    if rows and isinstance(rows[-1], dict) and faults.strike("hostile-ids"):
        way = faults.hits["hostile-ids"] % len(_HOSTILE_IDS)
        rows[-1] = {**rows[-1], "id": _HOSTILE_IDS[way]}
    if faults.strike("null-cursor"):
        page["has_more"], page["next_cursor"] = True, None
    if faults.strike("repeat-cursor"):
        page["has_more"], page["next_cursor"] = True, here


def _without(name: str) -> Callable[[Document], object]:
    return lambda order: {key: value for key, value in order.items() if key != name}


def _with(name: str, value: object) -> Callable[[Document], object]:
    return lambda order: {**order, name: value}


_BREAKS: tuple[Callable[[Document], object], ...] = (
    lambda _: None,
    lambda order: order["id"],
    lambda order: [order],
    _without("id"),
    _without("status"),
    _without("created_at"),
    _with("id", None),
    _with("id", 17),
    _with("status", None),
    _with("status", 5),
    _with("status", {"name": "paid"}),
    _with("created_at", "yesterday"),
    _with("created_at", 1_672_844_427),
    _with("quantity", 0.5),
    _with("quantity", "9" * 1000),
    _with("metadata", ["invoice"]),
    _with("metadata", {"note": "\ud800"}),
    _with("idempotency_key", {"key": "INV-1"}),
)

_HOSTILE_IDS = (
    "../../../../etc/cron.d/harvester",
    "/etc/passwd",
    "..",
    ".",
    "",
    "-rf",
    "a/b",
    "nul\x00byte",
    "line\nbreak",
    "x" * 300,
    "%2e%2e%2f",
    "\uff0e\uff0e\uff0fetc",
    "\u202efdp.exe",
    "{0.__class__}",
    "CON",
    "\x1b[2J",
)
