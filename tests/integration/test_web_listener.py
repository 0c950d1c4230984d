"""The listener against strangers: what they can send, hold, and learn."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from harvester.context import Limits, utc_now
from harvester.ledger.statistics import read_statistics
from harvester.sandbox import Sandbox
from harvester.web.listener import MOST_CONNECTIONS
from tests.integration.web_service import AUTHORIZED, Service, serving

NOT_FOUND = b'{"type": "about:blank", "title": "Not Found", "status": 404}'


@pytest.fixture
async def service(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(sandbox, tmp_path) as one:
        yield one


async def exchange(port: int, *pieces: bytes) -> bytes:
    """Send bytes and return all that comes until the listener hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: x", *headers, "", ""]).encode() + body


async def test_every_unknown_path_gets_the_same_answer(service: Service) -> None:
    for path in ("/", "/v2/orders", "/healthz/", "/webhooks", "/.env", "/%2e%2e/etc/passwd"):
        status, headers, body = await service.get(path, headers={})
        assert (status, body) == (404, NOT_FOUND), path
        assert headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "sent",
    [
        b"NONSENSE\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request("POST /v1/orders HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"),
        request("GET /healthz HTTP/1.1", "X: " + "x" * 9000),
        request("GET /" + "x" * 9000 + " HTTP/1.1"),
    ],
    ids=["no HTTP", "HTTP/2", "two lengths", "a large header", "a large path"],
)
async def test_what_is_no_request_is_refused_without_a_word_about_us(
    service: Service, sent: bytes
) -> None:
    answer = await exchange(service.port, sent)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"Server: harvester\r\n" in answer
    assert b"aiohttp" not in answer
    assert b"Python" not in answer
    assert b"xxx" not in answer


async def test_an_answer_names_no_version_of_anything(service: Service) -> None:
    for path in ("/healthz", "/nowhere", "/v1/orders"):
        _, headers, _ = await service.get(path, headers={})
        assert headers["Server"] == "harvester"
        assert headers["X-Content-Type-Options"] == "nosniff"


async def test_a_head_over_16_kib_is_cut_off(service: Service) -> None:
    lines = [f"X-{number}: {'x' * 4000}\r\n".encode() for number in range(5)]
    answer = await exchange(service.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n", *lines)
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HTT", request("GET /healthz HTTP/1.1")],
    ids=["nothing", "half a head", "a first request and no second"],
)
async def test_a_head_has_so_long_to_come(sandbox: Sandbox, tmp_path: Path, sent: bytes) -> None:
    async with serving(sandbox, tmp_path, limits=Limits(request_head=0.4)) as service:
        began = asyncio.get_running_loop().time()
        answer = await exchange(service.port, sent)
        assert answer.startswith(b"HTTP/1.1 200 " if sent.endswith(b"\r\n\r\n") else b"")
        assert 0.3 < asyncio.get_running_loop().time() - began < 8


async def test_a_body_has_so_long_to_come(sandbox: Sandbox, tmp_path: Path) -> None:
    head = request(
        "POST /v1/orders HTTP/1.1",
        "Content-Type: application/json",
        "Content-Length: 100",
        f"Authorization: {AUTHORIZED['Authorization']}",
        body=b"{",
    )
    async with serving(sandbox, tmp_path, limits=Limits(request_body=0.4)) as service:
        began = asyncio.get_running_loop().time()
        answer = await exchange(service.port, head)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0.3 < asyncio.get_running_loop().time() - began < 8


async def test_a_body_over_a_mebibyte_is_refused(service: Service) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 65_536

    headers = AUTHORIZED | {"Content-Type": "application/json"}
    try:
        status, _, _ = await service.ask("POST", "/v1/orders", headers=headers, data=endless())
    except OSError:
        return  # it hung up on what it would not read
    assert status == 413


async def test_a_compressed_body_is_not_unpacked(service: Service) -> None:
    headers = AUTHORIZED | {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    status, _, body = await service.ask("POST", "/v1/orders", headers=headers, data=b"\x1f\x8b")
    assert status == 400
    assert json.loads(body)["detail"].startswith("the body: ")


async def test_connections_over_the_cap_take_the_places_of_those_that_waited_longest(
    service: Service,
) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(300)]
    try:
        await asyncio.sleep(0.5)
        closed = [reader.at_eof() for reader, _ in opened]
        count = closed.count(True)
        assert 300 - MOST_CONNECTIONS <= count < 300 - MOST_CONNECTIONS + 64
        assert closed == [True] * count + [False] * (300 - count)
        reader, writer = opened[-1]
        writer.write(request("GET /healthz HTTP/1.1", "Connection: close"))
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
    finally:
        for _, writer in opened:
            writer.close()


async def test_idle_connections_hold_nobody_up(service: Service, sandbox: Sandbox) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(250)]
    try:
        sandbox.create_order("complete", hold=True)
        await service.stored(1)  # over the listener, by the harvest
    finally:
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize(
    "limits", [Limits(unread_response=0.5), Limits(response=0.5)], ids=["unread", "in all"]
)
async def test_an_answer_that_nobody_reads_is_given_up(
    sandbox: Sandbox, tmp_path: Path, limits: Limits
) -> None:
    for number in range(400):
        sandbox.create_order("paid", hold=True, metadata={"text": "x" * 4000, "n": str(number)})
    ask = request(
        "GET /v1/orders?limit=500 HTTP/1.1", f"Authorization: {AUTHORIZED['Authorization']}"
    )
    async with serving(sandbox, tmp_path, limits=limits) as service:

        async def recorded() -> bool:
            async with service.app.database.read() as connection:
                return sum((await read_statistics(connection, utc_now())).by_status.values()) == 400

        await service.until(recorded)
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(ask * 8)
            events = select.poll()
            events.register(connection, select.POLLHUP)
            async with asyncio.timeout(15):  # less than the limits are by default
                while not events.poll(0):
                    await asyncio.sleep(0.5)  # more often, and the kernel would wait on and on
                    with suppress(ConnectionError):
                        connection.send(b"\r\n")  # what is gone says so when it is sent something


async def test_an_answer_that_is_not_made_in_time_is_given_up(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    ask = request(
        "GET /v1/changes?after=0&wait=60 HTTP/1.1",
        f"Authorization: {AUTHORIZED['Authorization']}",
    )
    async with serving(sandbox, tmp_path, limits=Limits(response=0.4)) as service:
        began = asyncio.get_running_loop().time()
        assert await exchange(service.port, ask) == b""
        assert 0.3 < asyncio.get_running_loop().time() - began < 8
