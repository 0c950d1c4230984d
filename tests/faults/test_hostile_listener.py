"""Strangers at the listener: what they hold is bounded, what they learn is nothing.

The whole daemon runs in a process of its own; what is sent goes over raw sockets.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import random
import socket
import string
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from harvester.cli.exits import CONFIGURATION
from harvester.config.settings import HttpSettings
from harvester.config.types import parse_address
from harvester.context import Limits
from harvester.web.app import make_web_app, serving
from harvester.web.lune_webhook import MOST_LARGE, SMALL_BODY
from harvester.web.problems import LARGEST_BODY
from tests.acceptance.harness import Running, until
from tests.faults.catalogue import fault
from tests.faults.programs import limited_daemon
from tests.faults.scene import Scene
from tests.faults.webhook_client import PATH, SECRET, body_of, event, header, webhook_client

TOKEN = "token-of-the-listener"
MIB = 2**20
FORGED = f"Lune-HMAC: timestamp={int(time.time())},v1={'0' * 64}"
SERIES, CONNECTIONS = 300, 256
METHODS = ("HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "LOCK")


@asynccontextmanager
async def daemon(scene: Scene, limits: Limits | None = None) -> AsyncIterator[tuple[Running, int]]:
    """Run a daemon with webhooks and a token, the installed one unless under other limits.

    Yields it and the listener's port.
    """
    secret = scene.home.folder / "webhook_secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    scene.secret_files |= {secret.name, "config.toml"}
    scene.secrets.append(TOKEN)
    scene.home.configure(
        http__listen="127.0.0.1:0",
        http__token=TOKEN,
        webhook__secret_file=str(secret),
        harvest__sweep_interval="1s",
        lune__rate_limit=100,
    )
    started = limited_daemon(scene.home, limits) if limits else scene.home.daemon()
    async with started as running:
        yield running, int(running.events("listening")[0]["address"].rpartition(":")[2])
        scene.keep((await running.end()).err)


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


async def exchange(port: int, *pieces: bytes, seconds: float = 30) -> bytes:
    """Send bytes and return all that comes until the listener hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            while data := await reader.read(65_536):
                received += data
    except ConnectionError:
        pass  # it hung up on what it would not read
    finally:
        writer.transport.abort()
    return bytes(received)


async def asked(port: int, line: str, *headers: str, body: bytes = b"") -> bytes:
    return await exchange(port, request(line, *headers, "Connection: close", body=body))


def status(answer: bytes) -> int:
    return int(answer[9:12] or 0)


def without_date(answer: bytes) -> list[bytes]:
    return [line for line in answer.split(b"\r\n") if not line.startswith(b"Date:")]


def memory(running: Running, name: str = "VmRSS") -> int:
    text = Path("/proc", str(running.process.pid), "status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def forget_peak(running: Running) -> None:
    Path("/proc", str(running.process.pid), "clear_refs").write_text("5")


async def files_come(scene: Scene, more: int) -> None:
    """Make complete orders and wait until their certificates are stored."""
    before = len(scene.home.files())
    for _ in range(more):
        scene.order("complete")
    await until(lambda: len(scene.home.files()) == before + more)


@fault("X10")
async def test_the_series_do_not_grow_with_what_is_harvested_or_asked(scene: Scene) -> None:
    rng = random.Random(10)
    for number in range(300):
        scene.order("complete", idempotency_key=f"KEY-{number}", metadata={"n": str(number)})
    for number in range(40):
        scene.lune.faults.add(f"unknown-status=odd-status-{number},share=0.02,times=1")
    async with daemon(scene) as (_, port):
        await until(lambda: len(scene.home.files()) > 250)
        before = await scraped(port)
        paths = [f"/{''.join(rng.choices(string.ascii_letters, k=8))}/{n}" for n in range(1000)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in paths:
            target = rng.choice([PATH, PATH + path, f"/v1/orders{path}", path])
            method = rng.choice(["GET", "POST", "DELETE"])
            headers = f"Lune-HMAC: {path}", f"Authorization: Bearer {path}", "Content-Length: 0"
            writer.write(request(f"{method} {target}", *headers))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(length(head))
        writer.close()
        after = await scraped(port)
    # A label appears when it is first counted; which ones there are does not depend on anybody.
    assert len(after) < SERIES
    assert len(after - before) < 10
    named = {value for _, values in after for value in values}
    assert not {value for value in named if "odd-status" in value or len(value) > 40}
    assert not named & {order.id for order in scene.lune.orders()}


def length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def scraped(port: int) -> set[tuple[str, tuple[str, ...]]]:
    """Return the series of a scrape."""
    _, _, text = (await asked(port, "GET /metrics")).partition(b"\r\n\r\n")
    return {
        (sample.name, tuple(sample.labels.values()))
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@fault("X11")
def test_without_a_word_about_it_only_the_machine_itself_is_listened_to() -> None:
    address = HttpSettings().address
    assert address is not None
    assert address.is_loopback


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "example.org:80"])
@fault("X11")
async def test_anywhere_else_a_token_is_needed(scene: Scene, listen: str) -> None:
    address = parse_address(listen)
    assert address is not None
    assert not address.is_loopback
    scene.home.configure(http__listen=listen)
    ran = await scene.command("run")
    assert ran.code == CONFIGURATION
    assert "a token is needed" in ran.err


@fault("X11")
async def test_the_daemon_is_bound_to_loopback_and_shows_orders_only_to_who_has_the_token(
    scene: Scene,
) -> None:
    order = scene.order("paid")
    async with daemon(scene) as (running, port):
        inodes = listening_on(running)
        assert inodes == {("0100007F", port)}
        await until(lambda: running.events("order moved"))
        for shown in ([], ["Authorization: Bearer wrong"], [f"Authorization: Basic {TOKEN}"]):
            answer = await asked(port, f"GET /v1/orders/{order.id}", *shown)
            assert status(answer) == 401
            assert order.id.encode() not in answer
        answer = await asked(port, f"GET /v1/orders/{order.id}", f"Authorization: Bearer {TOKEN}")
        assert status(answer) == 200


def listening_on(running: Running) -> set[tuple[str, int]]:
    """Return the addresses (hexadecimal) and ports that the process listens on, by proc(5)."""
    folder = Path("/proc", str(running.process.pid))
    mine = set()
    for one in (folder / "fd").iterdir():
        try:
            mine.add(one.readlink().name.removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue  # closed meanwhile
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (folder / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in mine:
                host, _, port = fields[1].partition(":")
                found.add((host, int(port, 16)))
    return found


@fault("X12")
async def test_slow_endless_and_enormous_requests_end_and_the_harvest_goes_on(
    scene: Scene,
) -> None:
    post = ("POST " + PATH, FORGED)
    limits = Limits(request_head=2.0, request_body=2.0)
    async with daemon(scene, limits) as (running, port):
        await files_come(scene, 1)
        before = memory(running)
        forget_peak(running)
        over = asyncio.Event()

        async def pour(line: str, *headers: str, piece: bytes) -> bytes:
            return await exchange(port, request(line, *headers), *([piece] * 64))

        async def trickle(*headers: str) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answer = asyncio.create_task(reader.read(1000))
            try:
                writer.write(b"\r\n".join([b"POST /webhooks/lune HTTP/1.1", b"Host: x", b""]))
                writer.write("".join(f"{one}\r\n" for one in headers).encode())
                async with asyncio.timeout(30):  # two seconds are the limit
                    while not answer.done():
                        writer.write(b"x" if headers and not headers[-1] else b"X: y\r\n")
                        await asyncio.wait({answer}, timeout=1)
                return answer.result()
            except ConnectionError:
                return b""
            finally:
                answer.cancel()
                writer.transport.abort()

        async def harvest() -> bytes:
            await files_come(scene, 20)
            over.set()
            return b""

        work = {
            "length": pour(*post, "Content-Length: 1000000000", piece=b" " * 65_536),
            "chunks": pour(
                *post, "Transfer-Encoding: chunked", piece=b"10000\r\n%b\r\n" % (b" " * 65_536)
            ),
            "chunk": pour(*post, "Transfer-Encoding: chunked", "", "FFFFFFFF", piece=b" " * 65_536),
            "head": exchange(port, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000),
            "line": exchange(port, b"GET /" + b"x" * 200_000),
            "slow head": trickle(),
            "slow body": trickle(FORGED, "Content-Length: 1000", ""),
            "harvest": harvest(),
        }
        found = dict(zip(work, await asyncio.gather(*work.values()), strict=True))
        assert over.is_set()
        assert {name: status(found[name]) for name in ("length", "chunks")} == {
            "length": 413,
            "chunks": 413,
        }
        assert status(found["chunk"]) == 413
        assert status(found["head"]) in {0, 400, 431}
        assert status(found["line"]) in {0, 400, 414, 431}
        assert status(found["slow body"]) == 408
        assert status(found["slow head"]) in {0, 408}
        assert memory(running, "VmHWM") - before < 16 * MIB


@pytest.mark.parametrize(
    "head",
    [
        request(
            "POST " + PATH, "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"
        ),
        request("POST " + PATH, "Content-Length: 5", "Content-Length: 6", body=b"hello"),
        request("POST " + PATH, "Content-Length: +5", body=b"hello"),
        request("POST " + PATH, "Content-Length : 5", body=b"hello"),
        request("POST " + PATH, "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["length and chunks", "two lengths", "signed", "space", "coding", "HTTP/2", "TLS"],
)
@fault("X12")
async def test_a_request_that_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(
    scene: Scene, head: bytes
) -> None:
    async with webhook_client(scene) as client:
        hidden = body_of(event("order1"))
        smuggled = request(
            "POST " + PATH,
            f"Lune-HMAC: {header(hidden)}",
            f"Content-Length: {len(hidden)}",
            body=hidden,
        )
        answer = await exchange(client.port, head + smuggled)
        assert status(answer) in {400, 501}
        assert answer.count(b"HTTP/1.") == 1
        assert await client.rows("SELECT * FROM webhook_events") == []


@fault("X12")
async def test_ten_thousand_idle_connections_take_no_place_from_who_asks_something(
    scene: Scene,
) -> None:
    held: deque[socket.socket] = deque()
    async with daemon(scene) as (running, port):
        await files_come(scene, 1)
        before = memory(running)
        body = body_of(event("order1"))
        lines = f"Lune-HMAC: {header(body)}", f"Content-Length: {len(body)}"
        try:
            for _ in range(40):
                for _ in range(250):
                    one = socket.socket()
                    one.setblocking(False)
                    one.connect_ex(("127.0.0.1", port))
                    held.append(one)
                    if len(held) > 700:  # of ours: a process may have a thousand open
                        held.popleft().close()
                assert status(await asked(port, "POST " + PATH, *lines, body=body)) == 200
                assert descriptors(running) < CONNECTIONS + 100
            await files_come(scene, 3)
            assert memory(running) - before < 16 * MIB
        finally:
            for one in held:
                one.close()


def descriptors(running: Running) -> int:
    return len(list(Path("/proc", str(running.process.pid), "fd").iterdir()))


@fault("X12")
async def test_a_connection_that_works_is_not_closed_for_one_that_is_new() -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        reached.set()
        await go_on.wait()
        return web.Response(text="done")

    async def quick(_: web.Request) -> web.Response:
        return web.Response(text="here")

    limits = Limits()
    routes = [web.get("/slow", slow), web.get("/quick", quick)]
    web_app = make_web_app(routes, v1=(), control=(), token=None, limits=limits)
    async with AsyncExitStack() as held:
        faces = await held.enter_async_context(serving(web_app, limits))
        port = await held.enter_async_context(faces.on_address("127.0.0.1", 0))
        working = asyncio.create_task(asked(port, "GET /slow"))
        await reached.wait()
        for _ in range(3 * CONNECTIONS):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            held.callback(writer.close)
        assert (await asked(port, "GET /quick")).endswith(b"here")
        go_on.set()
        assert (await working).endswith(b"done")


@fault("X12")
async def test_large_bodies_of_strangers_leave_room_for_webhooks(scene: Scene) -> None:
    size = LARGEST_BODY - 1
    fitting = MOST_LARGE // (size - SMALL_BODY)
    head = request("POST " + PATH, FORGED, f"Content-Length: {size + 1}", body=b" " * size)
    async with webhook_client(scene, limits=Limits(request_body=3.0)) as client:
        waiting = [asyncio.create_task(exchange(client.port, head)) for _ in range(fitting + 4)]
        done: set[Any] = set()
        async with asyncio.timeout(8):
            while len(done) < 4:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done = {one for one in waiting if one.done()}
                await asyncio.sleep(0.01)
        assert {status(one.result()) for one in done} == {503}
        assert len(done) == 4
        assert await client.send(event("order1")) == 200
        answers = await asyncio.gather(*waiting)  # three seconds after they began
        assert sorted(status(one) for one in answers) == [408] * fitting + [503] * 4
        assert await client.send(event("order1", number=2, data=large_data())) == 200


@fault("X12")
async def test_a_webhook_that_nobody_signed_is_refused_unread(scene: Scene) -> None:
    async with webhook_client(scene) as client:
        began = time.monotonic()
        head = request("POST " + PATH, "Content-Length: 1000")
        assert status(await exchange(client.port, head)) == 401
        assert time.monotonic() - began < 8  # a body that is waited for has ten seconds
        assert client.webhooks.outcomes == {"refused": 1}


@fault("X12")
async def test_who_goes_before_the_answer_leaves_no_line_in_the_log(scene: Scene) -> None:
    head = request("POST " + PATH, FORGED, "Content-Length: 1000")
    async with webhook_client(scene) as client:
        for _ in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(head)
            writer.transport.abort()
        assert await client.send(event("order1")) == 200
    assert "request failed unexpectedly" not in scene.log_text()


def large_data() -> dict[str, Any]:
    return {"order": {"id": "order1", "note": "x" * (LARGEST_BODY - 10_000)}}


@fault("X13")
async def test_what_is_not_there_is_answered_alike_whatever_is_tried(scene: Scene) -> None:
    rng = random.Random(13)
    letters = string.ascii_letters + string.digits + "-_.~%!$&'()*+,;=:@/"
    paths = ["/", "/index.html", "/.git/config", "/webhooks", "/admin?x=1", "//healthz", "/v2"]
    paths += ["/" + "".join(rng.choices(letters, k=rng.randint(1, 200))) for _ in range(200)]
    async with daemon(scene) as (_, port):
        answers = {tuple(without_date(await asked(port, f"GET {one}"))) for one in paths}
        (nowhere,) = answers
        assert nowhere[0] == b"HTTP/1.1 404 Not Found"
        for path, allowed in ((PATH, b"POST"), ("/healthz", b"GET,HEAD")):
            refused = {
                tuple(without_date(await asked(port, f"{method} {path}", *extra)))
                for method in METHODS
                if method.encode() not in allowed
                for extra in ((), (f"Lune-HMAC: {'x' * 100}",))
            }
            bodies = {answer[-1] for answer in refused if answer[-1]}
            assert len(bodies) == 1
            assert {answer[0] for answer in refused} == {b"HTTP/1.1 405 Method Not Allowed"}
            assert all(b"Allow: " + allowed in answer for answer in refused)


@functools.cache
def bomb_of_64_mib() -> bytes:
    return gzip.compress(b" " * 64 * MIB)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
@fault("X17")
async def test_a_compressed_webhook_is_415_and_its_bytes_are_not_read(
    scene: Scene, encoding: str
) -> None:
    bomb = bomb_of_64_mib()
    async with webhook_client(scene) as client:
        headers = {"Lune-HMAC": header(bomb), "Content-Encoding": encoding}
        answered, body = await client.ask(bomb, headers)
        assert answered == 415
        assert json.loads(body)["title"] == "Unsupported Media Type"
        # Unread: the answer comes although the body never does.
        head = request(
            "POST " + PATH, FORGED, f"Content-Encoding: {encoding}", "Content-Length: 1000"
        )
        began = time.monotonic()
        assert status(await exchange(client.port, head)) == 415
        assert time.monotonic() - began < 8  # a body that is waited for has ten seconds
        assert await client.rows("SELECT * FROM webhook_events") == []


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@fault("X18")
async def test_no_answer_is_a_page_and_a_browser_takes_none_for_one(scene: Scene) -> None:
    order = scene.order("complete", metadata={"note": MARKUP}, idempotency_key="K-markup")
    shown = f"Authorization: Bearer {TOKEN}"
    async with daemon(scene) as (_, port):
        await until(scene.home.files)
        asks = [
            f"GET /v1/orders/{order.id}",
            "GET /v1/orders",
            f"GET /v1/orders?status={MARKUP.replace(' ', '+')}",
            "GET /v1/changes",
            "GET /v1/openapi.json",
            f"GET /v1/orders/{order.id}/certificate",
            "GET /healthz",
            "GET /readyz",
            "GET /metrics",
            f"GET /{MARKUP.replace(' ', '')}",
            f"POST {PATH}",
        ]
        for line in asks:
            answer = await asked(port, line, shown, "Accept: text/html")
            head = answer.partition(b"\r\n\r\n")[0].lower()
            assert b"\r\nx-content-type-options: nosniff" in head, line
            kind = head.partition(b"\r\ncontent-type: ")[2].partition(b"\r\n")[0]
            expected = (b"application/json", b"application/problem+json", b"application/pdf")
            assert kind.startswith((*expected, b"text/plain")), (line, kind)
        found = await asked(port, asks[0], shown, "Accept: text/html")
        # As data it is whole: nothing was rewritten on the way.
        assert json.loads(found.partition(b"\r\n\r\n")[2])["metadata"]["note"] == MARKUP
