"""TLS that cannot be trusted, or cannot be had."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from harvester.domain.errors import Unreachable
from harvester.lune import ClientOptions, Deadlines, LuneClient, RateLimiter
from tests.acceptance.harness import events
from tests.faults.catalogue import fault
from tests.faults.certificate_authority import CertificateAuthority
from tests.faults.scene import Scene
from tests.faults.tcp_relay import TcpRelay, relaying
from tests.integration.raw_server import Naps

KEY = "CANARY-key"
DAY = timedelta(days=1)
SERVER_HELLO_1_0 = bytes.fromhex("160301002a020000260301") + bytes(33) + bytes.fromhex("002f00")
"""The answer of a server whose newest version is TLS 1.0."""

GENEROUS = Deadlines(connect=5, read=5, total=10)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "authority")


async def failure(relay: TcpRelay, authority: CertificateAuthority) -> Unreachable:
    """Return what asking through TLS comes to when only that authority is believed."""
    trust = ssl.create_default_context(cafile=authority.file)
    base = relay.base_url("https")
    options = ClientOptions(GENEROUS, sleep=Naps(), tls=trust)
    async with LuneClient(base, lambda: KEY, RateLimiter(1000), options) as lune:
        with pytest.raises(Unreachable) as caught:
            await lune.fetch_own_account()
    return caught.value


def of_another(authority: CertificateAuthority) -> ssl.SSLContext:
    folder = authority.file.parent
    return CertificateAuthority(folder / "another").server()


SERVERS: dict[str, tuple[Callable[[CertificateAuthority], ssl.SSLContext], str]] = {
    "expired": (
        lambda one: one.server(begins=-2 * DAY, ends=-DAY),
        "certificate has expired; is the clock right?",
    ),
    "not yet valid": (
        lambda one: one.server(begins=DAY, ends=2 * DAY),
        "certificate is not yet valid; is the clock right?",
    ),
    "another host's": (lambda one: one.server("DNS:api.lune.co"), "IP address mismatch"),
    "nobody's": (of_another, "unable to get local issuer certificate"),
}


@fault("N18", "N26")
@pytest.mark.parametrize("server", SERVERS)
async def test_tls_that_cannot_be_trusted_never_gets_the_key(
    authority: CertificateAuthority, server: str
) -> None:
    make, reason = SERVERS[server]
    async with relaying(tls=make(authority)) as relay:
        error = await failure(relay, authority)
        assert (relay.connections, bytes(relay.received)) == (0, b"")
    assert error.message.startswith("tls: ")
    assert reason in error.message
    assert ("clock" in error.message) == (server in {"expired", "not yet valid"})
    assert KEY not in str(error)


@fault("N18")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (SERVER_HELLO_1_0, "tls: UNSUPPORTED_PROTOCOL"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "tls: TLSV1_ALERT_PROTOCOL_VERSION"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls: WRONG_VERSION_NUMBER"),
        (SERVER_HELLO_1_0[:20], "connect: the handshake was cut"),
        (b"", "connect: the handshake was cut"),
    ],
    ids=["TLS 1.0", "an alert", "plain http", "half a greeting", "nothing"],
)
async def test_where_no_tls_can_be_had_nothing_is_asked_without_it(
    authority: CertificateAuthority, answer: bytes, reason: str
) -> None:
    async with relaying(answer=answer) as relay:
        error = await failure(relay, authority)
        assert relay.connections == 4
        assert relay.received.startswith(b"\x16\x03\x01")  # a greeting in TLS
        assert b"HTTP/1.1" not in relay.received
        assert KEY.encode() not in relay.received
    assert error.message == reason


@fault("N18", "N26")
async def test_an_expired_certificate_is_waited_out_and_then_the_harvest_goes_on(
    scene: Scene, authority: CertificateAuthority
) -> None:
    good = authority.server()
    expired = authority.server(begins=-2 * DAY, ends=-DAY)
    handshakes = 0

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal handshakes
        handshakes += 1
        if handshakes > 1:
            connection.context = good

    expired.sni_callback = renew
    scene.order()
    async with relaying(scene.proxy.base_url, tls=expired) as relay, asyncio.timeout(60):
        scene.home.configure(lune__base_url=relay.base_url("https"))
        trust = {"SSL_CERT_FILE": str(authority.file)}
        ran = await scene.home.run("run", "--drain", env=trust)
    scene.keep(ran.err)
    assert ran.code == 0, ran.err
    (again,) = events(ran.err, "request repeated")
    assert (
        "tls: certificate refused: certificate has expired; is the clock right?" in again["reason"]
    )
    assert len(scene.home.files()) == 1
