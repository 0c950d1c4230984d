"""The client against servers that stall, trickle, cut, reset, lie and talk nonsense."""

from __future__ import annotations

import asyncio
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harvester.domain import errors
from harvester.domain.orders import Account
from harvester.lune import ClientOptions, Deadlines, LuneClient, RateLimiter
from tests.integration.raw_server import Answer, Naps, RawServer, raw_server, saying

OWN = Account("own", "own", "live", "account", "GBP", None, "org", is_default=True)
ORDER = b'{"id": "o1", "status": "placed", "created_at": "2023-01-04T15:00:27Z"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DEADLINES = Deadlines(connect=0.3, read=0.3, total=0.6)


def whole(body: bytes = ORDER) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def reset(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def asking(port: int, scheme: str = "http", **options: Any) -> AsyncIterator[LuneClient]:
    chosen = ClientOptions(**{"deadlines": DEADLINES, "sleep": Naps(), **options})
    base = f"{scheme}://127.0.0.1:{port}/v1"
    async with LuneClient(base, lambda: "key", RateLimiter(1000), chosen) as lune:
        yield lune


async def failure(answer: Answer, **options: Any) -> tuple[errors.LuneError, RawServer]:
    """Fetch an order from this server; return the error and the server for its counts."""
    async with raw_server(answer) as server, asking(server.port, **options) as lune:
        async with asyncio.timeout(20):
            with pytest.raises(errors.LuneError) as caught:
                await lune.fetch_order(OWN, "o1")
    return caught.value, server


async def stall(_: int, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def stall_in_the_body(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(whole()[:-5])
    await asyncio.sleep(60)


async def trickle_the_head(_: int, writer: asyncio.StreamWriter) -> None:
    for byte in HEAD * 100:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def trickle_the_body(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 1000\r\n\r\n")
    for _byte in range(1000):
        writer.write(b" ")
        await asyncio.sleep(0.05)


async def flood_of_1xx(_: int, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (stall, "timeout: no bytes in time"),
        (stall_in_the_body, "timeout: no bytes in time"),
        (trickle_the_head, "timeout: not whole in time"),
        (trickle_the_body, "timeout: not whole in time"),
        (flood_of_1xx, "timeout: not whole in time"),
    ],
)
async def test_a_server_that_takes_its_time_is_left_by_the_deadline(
    answer: Answer, reason: str
) -> None:
    error, server = await failure(answer)
    assert type(error) is errors.Unreachable
    assert error.message == reason
    assert error.status is None
    assert len(server.heads) == 4


async def test_a_certificate_has_a_deadline_of_its_own() -> None:
    async def slow(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.replace(b"json", b"pdf") + b"Content-Length: 10\r\n\r\n")
        for _byte in range(10):
            writer.write(b"%")
            await asyncio.sleep(0.05)

    deadlines = Deadlines(connect=1, read=1, total=0.1, certificate_total=20)
    async with raw_server(slow) as server, asking(server.port, deadlines=deadlines) as lune:
        assert (await lune.fetch_certificate(OWN, "o1")).data == b"%" * 10


async def reset_before_an_answer(_: int, writer: asyncio.StreamWriter) -> None:
    reset(writer)


async def reset_in_the_head(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await asyncio.sleep(0.05)
    reset(writer)


async def reset_in_the_body(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(whole()[:-5])
    await asyncio.sleep(0.05)
    reset(writer)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        reset_before_an_answer,
        reset_in_the_head,
        reset_in_the_body,
        saying(close=True),
        saying(HEAD, close=True),
        saying(whole()[:-5], close=True),
        saying(CHUNKED, b"10\r\n12345", close=True),
        saying(CHUNKED, b"5\r\n12345\r\n", close=True),
    ],
)
async def test_a_cut_answer_is_tried_four_times_and_never_taken(answer: Answer) -> None:
    error, server = await failure(answer)
    assert isinstance(error, errors.Unreachable)
    assert len(server.heads) == 4


@pytest.mark.parametrize(
    "noise",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(10_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        CHUNKED + b"zz\r\n12345\r\n",
        whole() + b"junk",
        b"\0" * 5000,
    ],
)
async def test_what_is_not_http_is_refused(noise: bytes) -> None:
    error, server = await failure(saying(noise))
    assert isinstance(error, errors.UnexpectedAnswer)
    assert error.message.startswith("protocol")
    assert len(server.heads) == 2
    assert error.__cause__ is None


@pytest.mark.parametrize("status", [101, 600, 999])
async def test_a_status_nobody_serves_is_refused(status: int) -> None:
    reply = b"HTTP/1.1 %d Odd\r\nContent-Length: 0\r\n\r\n" % status
    error, _ = await failure(saying(reply, close=True))
    assert isinstance(error, errors.UnexpectedAnswer)


async def test_a_body_without_length_that_was_cut_is_no_order() -> None:
    error, _ = await failure(saying(HEAD + b"\r\n" + ORDER[:-5], close=True))
    assert isinstance(error, errors.UnexpectedAnswer)


async def endless(_: int, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\n")
    while True:
        writer.write(b" " * 65_536)
        await writer.drain()


@pytest.mark.parametrize(
    "answer",
    [
        endless,
        saying(HEAD + b"Content-Length: 999999999999\r\n\r\n"),
        saying(whole(b" " * 20_000)),
    ],
)
async def test_a_body_over_the_cap_is_left_at_once_and_not_asked_again(answer: Answer) -> None:
    tracemalloc.start()
    try:
        error, server = await failure(answer, largest_json=10_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.message == "too large: over 10000 bytes"
    assert len(server.heads) == 1
    assert peak < 8 * 2**20


async def test_an_endless_error_page_is_cut_and_still_an_error() -> None:
    async def endless_fault(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"oh " * 10_000)
            await writer.drain()

    error, _ = await failure(endless_fault)
    assert isinstance(error, errors.ServerFault)
    assert error.message.startswith("a fault at Lune: oh oh")


async def test_a_401_whose_body_is_cut_still_refuses_the_key() -> None:
    reply = b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\n{"
    error, server = await failure(saying(reply, close=True))
    assert isinstance(error, errors.KeyRefused)
    assert len(server.heads) == 1
