"""The client's connections: kept, replaced, refused, and never trusted with another's answer."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harvester.domain import errors
from harvester.domain.orders import Account
from harvester.lune import ClientOptions, Deadlines, LuneClient, RateLimiter
from tests.integration.raw_server import Naps, raw_server, saying
from tests.needs import cannot

OWN = Account("own", "own", "live", "account", "GBP", None, "org", is_default=True)
ORDER = b'{"id": "o1", "status": "placed", "created_at": "2023-01-04T15:00:27Z"}'
DEADLINES = Deadlines(connect=0.3, read=0.3, total=1.0)


def whole(body: bytes = ORDER, extra: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n"
    return head % (len(body), extra) + body


@asynccontextmanager
async def asking(
    port: int, scheme: str = "http", host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[LuneClient]:
    chosen = ClientOptions(**{"deadlines": DEADLINES, "sleep": Naps(), **options})
    base = f"{scheme}://{host}:{port}/v1"
    async with LuneClient(base, lambda: "key", RateLimiter(1000), chosen) as lune:
        yield lune


FORGED = whole(ORDER.replace(b"placed", b"failed"))


@pytest.mark.parametrize(("extra", "delay"), [(FORGED, 0), (FORGED, 0.1), (b"junk", 0.1)])
async def test_bytes_after_an_answer_are_never_the_next_answer(extra: bytes, delay: float) -> None:
    async def answer(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(whole())
        await asyncio.sleep(delay)
        writer.write(extra)

    async with raw_server(answer) as server, asking(server.port) as lune:
        for _ in range(3):
            assert (await lune.fetch_order(OWN, "o1")).status == "placed"
            await asyncio.sleep(delay * 2)
        assert server.connections == 3


async def test_a_connection_closed_while_idle_is_replaced_without_a_wait() -> None:
    async def hang_up_on_the_second(n: int, writer: asyncio.StreamWriter) -> None:
        if n == 2:
            writer.close()
        else:
            writer.write(whole())

    naps = Naps()
    async with (
        raw_server(hang_up_on_the_second) as server,
        asking(server.port, sleep=naps) as lune,
    ):
        await lune.fetch_order(OWN, "o1")
        await lune.fetch_order(OWN, "o1")
        assert len(server.heads) == 3
    assert naps == [0]


async def test_connections_are_kept_for_the_next_request() -> None:
    async with raw_server(saying(whole())) as server, asking(server.port) as lune:
        for _ in range(5):
            await lune.fetch_order(OWN, "o1")
        assert (server.connections, len(server.heads)) == (1, 5)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    async with raw_server(saying(whole())) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/v1/orders/o1"
        head = f"HTTP/1.1 {status} There\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        async with raw_server(saying(head.encode())) as server, asking(server.port) as lune:
            with pytest.raises(errors.Redirected) as caught:
                await lune.fetch_order(OWN, "o1")
            assert len(server.heads) == 1
        assert elsewhere.connections == 0
    assert location not in str(caught.value)


async def test_cookies_are_not_kept() -> None:
    reply = whole(extra=b"Set-Cookie: session=1\r\n")
    # By name: aiohttp's own jar would not keep the cookies of a bare address anyway.
    async with raw_server(saying(reply)) as server, asking(server.port, host="localhost") as lune:
        await lune.fetch_order(OWN, "o1")
        await lune.fetch_order(OWN, "o1")
        assert not any(b"ookie" in head for head in server.heads)


async def test_every_try_passes_the_rate_limiter() -> None:
    async with raw_server(saying(close=True)) as server:
        rate_limiter = RateLimiter(1000)
        base = f"http://127.0.0.1:{server.port}/v1"
        options = ClientOptions(sleep=Naps())
        async with LuneClient(base, lambda: "key", rate_limiter, options) as lune:
            with pytest.raises(errors.Unreachable):
                await lune.fetch_order(OWN, "o1")
        assert rate_limiter.requests == len(server.heads) == 4


async def test_many_cancelled_requests_leave_the_client_working() -> None:
    slow = True

    async def answer(_: int, writer: asyncio.StreamWriter) -> None:
        if slow:
            await asyncio.sleep(60)
        writer.write(whole())

    async with raw_server(answer) as server, asking(server.port, connections=4) as lune:
        for _ in range(20):
            calls = [asyncio.create_task(lune.fetch_order(OWN, "o1")) for _ in range(8)]
            await asyncio.sleep(0.005)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        slow = False
        async with asyncio.timeout(20):
            assert (await lune.fetch_order(OWN, "o1")).id == "o1"


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with asking(unused.getsockname()[1]) as lune:
            with pytest.raises(errors.Unreachable, match="connect: ECONNREFUSED"):
                await lune.fetch_order(OWN, "o1")


@contextmanager
def full_backlog() -> Iterator[int]:
    """Listen, but leave no room for another connection: its SYN is dropped."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listening.getsockname())
            yield listening.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


async def test_a_connection_that_never_comes_about_has_a_deadline() -> None:
    with full_backlog() as port:
        async with asking(port) as lune, asyncio.timeout(20):
            with pytest.raises(errors.Unreachable, match="timeout: no connection"):
                await lune.fetch_order(OWN, "o1")


async def test_plain_http_where_tls_is_due_is_never_fallen_back_to() -> None:
    async with raw_server(saying(whole(), close=True)) as server:
        async with asking(server.port, "https") as lune:
            with pytest.raises(errors.Unreachable):
                await lune.fetch_order(OWN, "o1")
        assert server.heads == []


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    openssl = shutil.which("openssl")
    if openssl is None:
        cannot("no openssl to make a certificate with")
    files = [str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")]
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            files[0],
            "-out",
            files[1],
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    return context


async def test_a_certificate_nobody_vouches_for_is_refused_before_the_key_is_sent(
    self_signed: ssl.SSLContext, tmp_path: Path
) -> None:
    ample = Deadlines(connect=5, read=5, total=10)
    async with raw_server(saying(whole()), ssl=self_signed) as server:
        async with asking(server.port, "https", deadlines=ample) as lune:
            with pytest.raises(errors.Unreachable, match="tls: certificate refused"):
                await lune.fetch_order(OWN, "o1")
        assert server.heads == []
        trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        async with asking(server.port, "https", deadlines=ample, tls=trusting) as lune:
            assert (await lune.fetch_order(OWN, "o1")).id == "o1"
