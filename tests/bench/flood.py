"""Strangers and Lune at the listener's door: ``flood.py`` reads what to do as JSON from stdin.

A process of its own with the standard library alone, so that it costs little of what it measures.
It prints one JSON document: what was answered how often, and how long genuine webhooks took. See
:mod:`tests.bench.load`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import resource
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

PATH = "/webhooks/lune"
_TICK = 0.005
_SENDERS = 160
_MOST_WAITING = 2000
_SLOW_EACH = 100
_OPENED_A_SECOND = 1000
_FLOOD_PIECE = b" " * 65_536
_POST = (
    f"POST {PATH} HTTP/1.1\r\nHost: x\r\nLune-HMAC: timestamp=1800000000,v1={'0' * 64}\r\n"
).encode()
"""What strangers send shows its forgery only when its body is read."""


class Webhooks:
    """Genuine webhooks at a steady rate, whatever becomes of them, over kept connections.

    A webhook's time counts from the moment it was to be sent, so that waiting for a connection is
    not left out.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._secret = order["secret"].encode()
        self._numbers = itertools.count()
        self.answers: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.waiting: deque[float] = deque()
        self._arrived = asyncio.Event()

    async def run(self) -> None:
        """Send until cancelled."""
        senders = [asyncio.create_task(self._send_forever()) for _ in range(_SENDERS)]
        try:
            began, sent = time.monotonic(), 0
            while True:
                await asyncio.sleep(_TICK)
                now = time.monotonic()
                due = int((now - began) * self._order["rate"])
                for _ in range(due - sent):
                    if len(self.waiting) < _MOST_WAITING:
                        self.waiting.append(now)
                    else:
                        self.answers["not sent"] += 1
                sent = due
                self._arrived.set()
        finally:
            for one in senders:
                one.cancel()
            await asyncio.gather(*senders, return_exceptions=True)

    async def _send_forever(self) -> None:
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._order["port"])
                try:
                    while True:
                        await self._send_one(reader, writer)
                finally:
                    writer.close()
            await asyncio.sleep(0.05)

    async def _send_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self.waiting:
            self._arrived.clear()
            await self._arrived.wait()
        due = self.waiting.popleft()
        try:
            writer.write(signed(self._event(), self._secret))
            status = await read_answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            self.answers["cut off"] += 1
            raise
        self.answers[status] += 1
        self.seconds.append(time.monotonic() - due)

    def _event(self) -> bytes:
        number = next(self._numbers)
        ids = self._order["order_ids"]
        return event(
            f"flood-{self._order['series']}-{number}",
            "order.completed",
            self._order["account_id"],
            ids[number % len(ids)],
        )


def event(event_id: str, kind: str, account_id: str, order_id: str) -> bytes:
    """Return a webhook's body with one event, of about the size Lune's have."""
    head = f'{{"events":[{{"api_version":"v1","event_id":"{event_id}","event_type":"{kind}",'
    about = f'"sequence":"2026-03-01 12:00:00.{time.time_ns():020}","account_id":"{account_id}",'
    order = f'"data":{{"order":{{"id":"{order_id}","status":"complete","note":"{"x" * 1000}"}}}}}}'
    return f"{head}{about}{order}]}}".encode()


def signed(body: bytes, secret: bytes) -> bytes:
    """Return a request with a genuine ``Lune-HMAC``."""
    at = str(int(time.time()))
    digest = hmac.digest(secret, at.encode() + b"." + body, hashlib.sha256).hex()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Lune-HMAC: timestamp={at},v1={digest}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def read_answer(reader: asyncio.StreamReader) -> str:
    """Read one answer with a length; return its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            await reader.readexactly(int(value))
    return head[9:12].decode()


class Strangers:
    """Slow, oversized and idle connections; ``ends`` counts how each of them ended."""

    def __init__(self, port: int, idle: int) -> None:
        self._port = port
        self._most_idle = idle
        self._idle: set[socket.socket] = set()
        self.ends: Counter[str] = Counter()
        self.most_open = 0

    async def slow(self) -> None:
        """Trickle heads and bodies, a byte a second."""
        head = _POST + b"Content-Length: 1000\r\n"
        await _together(
            *(self._again("slow head", head, b"X: y\r\n") for _ in range(_SLOW_EACH)),
            *(self._again("slow body", head + b"\r\n", b" ") for _ in range(_SLOW_EACH)),
        )

    async def oversized(self) -> None:
        """Send bodies without end and heads that are too large, each again and again."""
        length = _POST + b"Content-Length: 1000000000\r\n\r\n"
        chunked = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
        chunk = b"10000\r\n" + _FLOOD_PIECE + b"\r\n"
        await _together(
            *(self._again("large body", length, _FLOOD_PIECE, 0) for _ in range(4)),
            *(self._again("endless body", chunked, chunk, 0) for _ in range(4)),
            *(self._again("large head", _POST, b"X: y\r\n" * 1000, 0) for _ in range(4)),
        )

    async def idle(self) -> None:
        """Keep so many connections open that say nothing, opening anew what is closed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                for _ in range(min(_OPENED_A_SECOND // 20, self._most_idle - len(self._idle))):
                    one = socket.socket()
                    one.setblocking(False)
                    one.connect_ex(("127.0.0.1", self._port))
                    self._idle.add(one)
                    loop.add_reader(one, self._closed, one)
                self.most_open = max(self.most_open, len(self._idle))
                await asyncio.sleep(0.05)
        finally:
            for one in list(self._idle):
                self._closed(one)

    def _closed(self, one: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(one)
        one.close()
        self._idle.discard(one)
        self.ends["idle"] += 1

    async def _again(self, name: str, head: bytes, piece: bytes, pause: float = 1.0) -> None:
        while True:
            try:
                self.ends[f"{name}: {await self._exchange(head, piece, pause)}"] += 1
            except OSError:
                self.ends[f"{name}: cut off"] += 1
            await asyncio.sleep(0.1)

    async def _exchange(self, head: bytes, piece: bytes, pause: float) -> str:
        """Send a head and then pieces until an answer comes; return its status."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            answer = asyncio.create_task(reader.read(1000))
            try:
                writer.write(head)
                while not answer.done():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.wait({answer}, timeout=pause)
                return (await answer)[9:12].decode() or "cut off"
            finally:
                answer.cancel()
        finally:
            writer.transport.abort()


async def _together(*works: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)


def percentile(values: list[float], share: float) -> float | None:
    """Return a percentile in milliseconds; None without values."""
    if not values:
        return None
    return round(1000 * sorted(values)[min(int(share * len(values)), len(values) - 1)], 1)


async def flood(order: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked for so many seconds; return what came of it."""
    webhooks, strangers = Webhooks(order), Strangers(order["port"], order["idle"])
    kinds: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "webhooks": webhooks.run,
        "slow": strangers.slow,
        "oversized": strangers.oversized,
        "idle": strangers.idle,
    }
    with suppress(TimeoutError):
        async with asyncio.timeout(order["seconds"]):
            await _together(*(kinds[name]() for name in order["kinds"]))
    return {
        "answers": webhooks.answers,
        "p50 ms": percentile(webhooks.seconds, 0.5),
        "p99 ms": percentile(webhooks.seconds, 0.99),
        "ends": strangers.ends,
        "most open": strangers.most_open,
        "cpu": time.process_time(),
    }


def main() -> None:
    """Read what to do, do it, tell what came of it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    json.dump(asyncio.run(flood(json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
