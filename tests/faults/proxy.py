"""A proxy between the harvester and its Lune: it lets through, interferes, and writes down.

A loopback server below HTTP in front of a sandbox. Requests pass unless a test has scripted what
the next ones of an endpoint get instead, down to the byte. What was asked and what was served is
recorded: the server's own record, which the invariants hold the ledger and the log against.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

_ENDPOINTS = (
    ("certificate", re.compile(r"/v1/orders/[^/?]+/certificate")),
    ("order", re.compile(r"/v1/orders/(?!by-|estimate)[^/?]+")),
    ("orders", re.compile(r"/v1/orders(\?.*)?")),
    ("account", re.compile(r"/v1/accounts/(?!client)[^/?]+")),
    ("accounts", re.compile(r"/v1/accounts(/client)?(\?.*)?")),
)
_KEPT = 16 * 2**20
"""Bytes of an answer that are kept for the record."""

_RESET = struct.pack("ii", 1, 0)  # linger on, for no time: closing sends RST


@dataclass(slots=True)
class Seen:
    """A request as it arrived: when (monotonic seconds), what, as whom, and how it ended.

    ``status`` is what was served, 0 when nothing whole was, ``ended_at`` when that was over.
    """

    at: float
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    status: int = 0
    ended_at: float | None = None

    @property
    def endpoint(self) -> str:
        """certificate, order, orders, account, accounts or other."""
        for name, pattern in _ENDPOINTS:
            if pattern.fullmatch(self.target):
                return name
        return "other"


@dataclass(frozen=True, slots=True)
class Served:
    """An order's status that left the server: whose, which, what, and when (wall clock)."""

    account_id: str
    order_id: str
    status: str
    at: float


@dataclass(slots=True)
class Exchange:
    """What an answer has to work with: the request, the way back, and the real Lune's answer."""

    seen: Seen
    writer: asyncio.StreamWriter
    upstream: Callable[[], Awaitable[bytes]]
    sent: bytearray = field(default_factory=bytearray)

    async def say(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        for part in parts:
            self.sent += part[: max(0, _KEPT - len(self.sent))]
            self.writer.write(part)
            await self.writer.drain()

    def reset(self) -> None:
        """Drop the connection with RST."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()


Answer = Callable[[Exchange], Awaitable[None]]


@dataclass(slots=True)
class _Script:
    answer: Answer
    endpoint: str | None
    left: float


@dataclass(slots=True)
class Proxy:
    """An asynchronous context manager in front of the server at ``upstream`` (a base URL)."""

    upstream: str
    default_account: str
    requests: list[Seen] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    listed: set[tuple[str, str]] = field(default_factory=set)
    connections: int = 0
    _scripts: list[_Script] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def base_url(self) -> str:
        """The address that stands in for Lune's."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def script(self, answer: Answer, endpoint: str | None = None, times: float = 1) -> None:
        """Have the next ``times`` requests of an endpoint (any, unless named) answered so.

        Scripts wait in line: an earlier one that fits is used up first.
        """
        self._scripts.append(_Script(answer, endpoint, times))

    def clear(self) -> None:
        """Let everything through again."""
        self._scripts.clear()

    def count(self, endpoint: str | None = None) -> int:
        """Return how many requests arrived, of one endpoint or of all."""
        return sum(endpoint in (None, seen.endpoint) for seen in self.requests)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            while not writer.is_closing():
                seen = await _read_request(reader, number)
                self.requests.append(seen)
                exchange = Exchange(seen, writer, partial(self._ask, seen))
                try:
                    await self._pick(seen.endpoint)(exchange)
                finally:
                    self._conclude(seen, bytes(exchange.sent))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    def _pick(self, endpoint: str) -> Answer:
        for script in self._scripts:
            if script.endpoint in (None, endpoint):
                script.left -= 1
                if script.left <= 0:
                    self._scripts.remove(script)
                return script.answer
        return through

    async def _ask(self, seen: Seen) -> bytes:
        """Return the real server's whole answer, head and body, and note what it says."""
        address = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            head = f"{seen.method} {seen.target} HTTP/1.1\r\n"
            kept = {name: text for name, text in seen.headers.items() if name != "connection"}
            head += "".join(f"{name}: {text}\r\n" for name, text in kept.items())
            writer.write(head.encode("latin-1") + b"Connection: close\r\n\r\n" + seen.body)
            answer = await reader.read(-1)
        finally:
            writer.close()
        return answer.replace(b"\r\nConnection: close", b"", 1)

    def _conclude(self, seen: Seen, sent: bytes) -> None:
        """Record what left: the status, and the orders' statuses in a page or an order."""
        seen.ended_at = time.monotonic()
        head, _, body = sent.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        seen.status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        if seen.status != 200 or seen.endpoint not in {"order", "orders"}:
            return
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return
        if not isinstance(document, dict):
            return
        account = seen.headers.get("lune-account", self.default_account)
        rows = document.get("data", []) if seen.endpoint == "orders" else [document]
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and isinstance(row.get("id"), str):
                self.listed.add((account, row["id"]))
                if isinstance(row.get("status"), str):
                    self.served.append(Served(account, row["id"], row["status"], time.time()))


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    at = time.monotonic()
    line, *rest = head.split("\r\n")
    method, target, _ = line.split(" ")
    headers = dict(_fields(rest))
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(at, method, target, headers, body, connection)


def _fields(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, colon, text = line.partition(":")
        if colon:
            yield name.strip().lower(), text.strip()


async def through(exchange: Exchange) -> None:
    """Let the request pass, and its answer."""
    await exchange.say(await exchange.upstream())


def saying(*parts: bytes, close: bool = False) -> Answer:
    """Answer with bytes as they are; ``close`` hangs up after them."""

    async def answer(exchange: Exchange) -> None:
        await exchange.say(*parts)
        if close:
            exchange.writer.close()

    return answer


def response(
    status: int, body: bytes = b"", content_type: str = "application/json", **headers: str
) -> bytes:
    """Return a whole HTTP answer; ``Retry_After="3"`` gives a ``Retry-After`` header."""
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}"]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def changed(change: Callable[[bytes], bytes]) -> Answer:
    """Answer as the real server would, its JSON or PDF body changed, its length set right."""

    async def answer(exchange: Exchange) -> None:
        head, _, body = (await exchange.upstream()).partition(b"\r\n\r\n")
        body = change(body)
        head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head)
        await exchange.say(head + b"\r\n\r\n" + body)

    return answer


async def silence(exchange: Exchange) -> None:
    """Never answer."""
    await asyncio.sleep(3600)


async def hang_up(exchange: Exchange) -> None:
    """Close without a word."""
    exchange.writer.close()


async def reset(exchange: Exchange) -> None:
    """Drop the connection with RST without a word."""
    exchange.reset()


def trickle(data: bytes, pause: float, size: int = 1) -> Answer:
    """Send the bytes ``size`` at a time, ``pause`` seconds apart."""

    async def answer(exchange: Exchange) -> None:
        for start in range(0, len(data), size):
            await exchange.say(data[start : start + size])
            await asyncio.sleep(pause)

    return answer
