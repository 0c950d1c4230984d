"""Names that cannot be looked up, take for ever, or stand for where the key must not go."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import aiohttp
import pytest
from yarl import URL

from harvester.domain.errors import Unreachable
from harvester.lune import ClientOptions, Deadlines
from harvester.lune.responses import Response
from harvester.lune.transport import GuardedResolver, Lookup, Transport
from tests.acceptance.harness import until
from tests.faults.catalogue import fault
from tests.faults.namespaces import need_unshare, with_deaf_name_server, with_hosts
from tests.faults.scene import Scene
from tests.faults.tcp_relay import TcpRelay, bound_socket, never_accepting, relaying
from tests.needs import cannot

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def giving(*addresses: str) -> Lookup:
    """Return a look-up that finds these, whatever is looked up."""

    def lookup(_host: str, port: int, **_options: Any) -> list[Any]:
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
            for family in [socket.AF_INET6 if ":" in address else socket.AF_INET]
        ]

    return lookup


@asynccontextmanager
async def asking(lookup: Lookup, connect: float = 10.0) -> AsyncIterator[Transport]:
    options = ClientOptions(Deadlines(connect=connect), lookup=lookup)
    transport = Transport(options, redact=str)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()


async def ask(transport: Transport, port: int, host: str = "lune.example") -> Response:
    return await transport.send("GET", URL(f"http://{host}:{port}/v1"), {}, total=20, cap=1000)


@fault("N15")
@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_AGAIN, socket.EAI_FAIL])
async def test_a_name_that_is_not_found_may_be_found_later(number: int) -> None:
    def lookup(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(number, "what the system calls it")

    async with asking(lookup) as transport:
        with pytest.raises(Unreachable, match="dns: what the system calls it") as caught:
            await ask(transport, 443)
    assert caught.value.retryable


@fault("N15")
async def test_what_can_be_no_name_is_refused_like_one_that_is_not_found() -> None:
    async with asking(socket.getaddrinfo) as transport:
        with pytest.raises(Unreachable, match="dns"):
            await ask(transport, 443, host=f"{'a' * 64}.example")


@fault("N15")
async def test_a_look_up_that_hangs_holds_up_nothing_but_its_request() -> None:
    over = threading.Event()

    def lookup(*_: Any, **__: Any) -> list[Any]:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    gaps = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            gaps.append(time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    try:
        async with asking(lookup, connect=0.5) as transport:
            for _ in range(2):
                with pytest.raises(Unreachable, match="timeout: no connection in time"):
                    await ask(transport, 443)
        lookups = [thread for thread in threading.enumerate() if thread.name == "lookup"]
        assert len(lookups) == 1
    finally:
        over.set()
        ticking.cancel()
    assert max(gaps) < 0.4


@fault("N15")
async def test_a_daemon_whose_name_server_is_silent_answers_and_ends_when_told(
    scene: Scene,
) -> None:
    await need_unshare()
    scene.home.configure(lune__base_url="https://lune.invalid/v1")
    control = f"{scene.home.ledger}.socket"
    async with with_deaf_name_server(scene.home, "run") as daemon:
        await until(lambda: daemon.events("started") or daemon.ended)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(control)) as session:
            for _ in range(5):
                async with asyncio.timeout(5), session.get("http://daemon/nothing") as response:
                    assert response.status == 404
        assert daemon.events("request repeated") == []  # the first look-up is still waited for
        daemon.process.send_signal(signal.SIGTERM)
        await until(lambda: daemon.events("stopping"))
        async with asyncio.timeout(10):
            ran = await daemon.end(signal.SIGTERM)
    scene.keep(ran.err)
    assert ran.code == 0, ran.err


NOT_PUBLIC = (
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.1.1",
    "224.0.0.1",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "fc00::1",
    "fe80::1",
    "ff02::1",
)


@fault("N16")
@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_a_name_that_stands_for_this_machine_or_its_neighbours_is_refused(
    address: str,
) -> None:
    async with relaying(answer=ANSWER) as relay, asking(giving(address)) as transport:
        with pytest.raises(Unreachable, match=r"dns: .* not public"):
            await ask(transport, relay.port)
        assert relay.connections == 0


@fault("N16")
async def test_of_a_name_s_addresses_only_the_public_ones_are_used() -> None:
    public = ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"]
    resolver = GuardedResolver(giving("10.1.2.3", public[0], "::1", public[1]))
    found = await resolver.resolve("lune.example", 443)
    assert [one["host"] for one in found] == public


@fault("N16")
async def test_localhost_is_this_machine_and_nothing_else() -> None:
    async with relaying(answer=ANSWER) as relay:
        async with asking(giving("127.0.0.1")) as transport:
            assert (await ask(transport, relay.port, host="localhost")).status == 200
        async with asking(giving("93.184.216.34")) as transport:
            with pytest.raises(Unreachable, match="dns: "):
                await ask(transport, relay.port, host="localhost")


@fault("N16")
async def test_an_address_written_in_the_configuration_is_not_looked_up() -> None:
    async with relaying(answer=ANSWER) as relay, asking(giving()) as transport:
        assert (await ask(transport, relay.port, host="127.0.0.1")).status == 200


@fault("N16")
async def test_a_hosts_file_that_points_lune_at_this_machine_gets_no_connection(
    scene: Scene,
) -> None:
    await need_unshare()
    async with relaying() as relay:
        scene.home.configure(lune__base_url=relay.base_url("https", "lune.invalid"))
        hosts = "127.0.0.1 localhost lune.invalid\n"
        async with with_hosts(scene.home, hosts, "run", "--drain") as drain:
            await until(lambda: drain.events("request repeated") or drain.ended)
            drain.process.send_signal(signal.SIGTERM)
            await until(lambda: "interrupt again" in "".join(drain.err))
            ran = await drain.end(signal.SIGTERM)
        scene.keep(ran.err)
        assert "stands for an address that is not public" in ran.err
        assert relay.connections == 0


@fault("N17")
async def test_an_address_of_ipv6_that_is_dead_costs_little_where_ipv4_answers() -> None:
    relay = TcpRelay(answer=ANSWER)
    await relay.listen()
    try:
        dead = bound_socket("::1", relay.port)
    except OSError:
        await relay.stop()
        cannot("needs IPv6 on the loopback interface")
    began = time.monotonic()
    with closing(dead), never_accepting(dead):
        async with asking(giving("::1", "127.0.0.1")) as transport:
            assert (await ask(transport, relay.port, host="localhost")).status == 200
    assert time.monotonic() - began < 3
    await relay.stop()
