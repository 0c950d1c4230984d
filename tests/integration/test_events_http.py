"""The way to a receiver over HTTP: what is sent, how it is signed, what is believed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from standardwebhooks import Webhook, WebhookVerificationError

from harvester.config.secrets import Secret
from harvester.domain.deliveries import DeliveryFailure
from harvester.domain.errors import ConfigurationError
from harvester.domain.events import Event, cloud_event, event_text
from harvester.events.http import HttpSender, SenderOptions
from harvester.events.signing import make_secret, read_signer
from tests.integration.raw_server import raw_server
from tests.integration.receiver import Receiver, receiving

EVENT = Event(
    7,
    "5f3d3f51-0c8e-4b73-9d3a-0d1f6cf8a001",
    "certificate.stored",
    "acct",
    "o1",
    datetime(2026, 3, 1, tzinfo=UTC),
    {"idempotency_key": "INV-\u00e9", "version": 1},
)


def now() -> datetime:
    return datetime.now(UTC)


def secret_in(folder: Path, name: str = "secret", text: str | None = None) -> Secret:
    file = folder / name
    file.write_text((text or make_secret()) + "\n")
    file.chmod(0o600)
    return Secret(f"events.receivers.{name}.secret", None, file)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as one:
        yield one


async def send(
    url: str, *secrets: Secret, event: Event = EVENT, **more: Any
) -> DeliveryFailure | None:
    """Send one event with these options; to private addresses unless they say otherwise."""
    async with way_to(url, *secrets, **more) as sender:
        return await sender.send(event)


@asynccontextmanager
async def way_to(url: str, *secrets: Secret, **more: Any) -> AsyncIterator[HttpSender]:
    """Have a sender while inside."""
    options = replace(SenderOptions(allow_private=True, agent="test/1"), **more)
    sender = HttpSender(url, secrets, now, options)
    try:
        yield sender
    finally:
        await sender.close()


# What is sent.


async def test_an_event_is_sent_as_one_structured_cloud_event(
    receiver: Receiver, tmp_path: Path
) -> None:
    assert await send(receiver.url, secret_in(tmp_path)) is None
    (sent,) = receiver.sent
    assert sent.event == cloud_event(EVENT)
    assert sent.body.decode() == event_text(EVENT)
    assert sent.headers["content-type"] == "application/cloudevents+json"
    assert sent.headers["webhook-id"] == EVENT.id
    assert sent.headers["user-agent"] == "test/1"
    assert not {"cookie", "authorization", "referer"} & sent.headers.keys()


async def test_the_signature_is_verified_by_the_standard_library_of_receivers(
    receiver: Receiver, tmp_path: Path
) -> None:
    secret = secret_in(tmp_path)
    await send(receiver.url, secret)
    (sent,) = receiver.sent
    assert Webhook(secret.read()).verify(sent.body, sent.headers) == cloud_event(EVENT)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret.read()).verify(sent.body + b" ", sent.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(make_secret()).verify(sent.body, sent.headers)


async def test_the_signature_is_that_of_the_public_scheme(
    receiver: Receiver, tmp_path: Path
) -> None:
    key = bytes(range(32))
    secret = secret_in(tmp_path, text="whsec_" + base64.b64encode(key).decode())
    before = int(now().timestamp())
    await send(receiver.url, secret)
    (sent,) = receiver.sent
    stamp = sent.headers["webhook-timestamp"]
    assert before <= int(stamp) <= int(now().timestamp())
    content = b".".join([EVENT.id.encode(), stamp.encode(), sent.body])
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert sent.headers["webhook-signature"] == f"v1,{expected}"


async def test_while_a_secret_is_replaced_both_sign(receiver: Receiver, tmp_path: Path) -> None:
    new, old = secret_in(tmp_path, "new"), secret_in(tmp_path, "old")
    await send(receiver.url, new, old)
    (sent,) = receiver.sent
    assert len(sent.headers["webhook-signature"].split(" ")) == 2
    for secret in (new, old):
        Webhook(secret.read()).verify(sent.body, sent.headers)


async def test_a_replaced_secret_signs_without_a_restart(
    receiver: Receiver, tmp_path: Path
) -> None:
    secret = secret_in(tmp_path)
    async with way_to(receiver.url, secret) as sender:
        await sender.send(EVENT)
        secret_in(tmp_path)
        await sender.send(EVENT)
    first, second = receiver.sent
    Webhook(secret.read()).verify(second.body, second.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret.read()).verify(first.body, first.headers)


@pytest.mark.parametrize(
    "text",
    ["whsec_", "whsec_AAAA", "whsec_!" + "A" * 43, "A" * 44, "whsec_" + "A" * 88 + "AAAA"],
)
async def test_what_is_no_secret_signs_nothing(
    receiver: Receiver, tmp_path: Path, text: str
) -> None:
    secret = secret_in(tmp_path, text=text)
    with pytest.raises(ConfigurationError, match="whsec_ and base64") as refusal:
        read_signer(secret)
    assert text.removeprefix("whsec_") == "" or text not in str(refusal.value)
    outcome = await send(receiver.url, secret)
    assert outcome is not None
    assert receiver.sent == []


# What is believed.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_success_means_accepted(receiver: Receiver, tmp_path: Path, status: int) -> None:
    receiver.judge = lambda _: status
    assert await send(receiver.url, secret_in(tmp_path)) is None


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 500, 503])
async def test_any_other_status_means_not_accepted(
    receiver: Receiver, tmp_path: Path, status: int
) -> None:
    receiver.judge = lambda _: status
    wanted = DeliveryFailure(f"status {status}", of_event=status in {400, 409})
    assert await send(receiver.url, secret_in(tmp_path)) == wanted


async def test_gone_means_never_again(receiver: Receiver, tmp_path: Path) -> None:
    receiver.judge = lambda _: 410
    assert await send(receiver.url, secret_in(tmp_path)) == DeliveryFailure("status 410", gone=True)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(tmp_path: Path, status: int) -> None:
    async with receiving() as other, receiving(headers={"Location": other.url}) as first:
        first.judge = lambda _: status
        outcome = await send(first.url, secret_in(tmp_path))
    assert outcome == DeliveryFailure(f"status {status}: redirects are not followed")
    assert other.sent == []


async def test_no_cookie_of_a_receiver_is_sent_back(receiver: Receiver, tmp_path: Path) -> None:
    receiver.headers = {"Set-Cookie": "session=1"}
    async with way_to(receiver.url, secret_in(tmp_path)) as sender:
        for _ in range(2):
            await sender.send(EVENT)
    assert all("cookie" not in sent.headers for sent in receiver.sent)


async def test_an_attempt_has_a_timeout_as_a_whole(receiver: Receiver, tmp_path: Path) -> None:
    receiver.hold.clear()
    async with asyncio.timeout(10):
        outcome = await send(receiver.url, secret_in(tmp_path), timeout=0.2)
    assert outcome == DeliveryFailure("no answer within 0.2 s")


async def test_an_answer_without_end_is_not_read(tmp_path: Path) -> None:
    written = 0

    async def without_end(_: int, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            written += 65536

    async with raw_server(without_end) as raw, asyncio.timeout(10):
        url = f"http://127.0.0.1:{raw.port}/"
        assert await send(url, secret_in(tmp_path)) is None
    assert written < 32 * 2**20  # what the kernel's buffers hold, far below an endless read


async def test_nobody_there_and_no_such_host_are_failures(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/secret-path"
        outcome = await send(url, secret_in(tmp_path))
    assert outcome is not None
    assert outcome.reason.startswith("no connection")
    assert "secret-path" not in outcome.reason


# Where it is sent.


class Names(AbstractResolver):
    """Resolves every name to the given addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=one, port=port, family=socket.AF_INET, proto=0, flags=0
            )
            for one in self.addresses
        ]

    async def close(self) -> None:
        return None


PRIVATE = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0"]
PRIVATE6 = ["::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1"]


@pytest.mark.parametrize("address", [*PRIVATE, *PRIVATE6])
async def test_a_name_that_leads_inside_is_refused(tmp_path: Path, address: str) -> None:
    outcome = await send(
        "http://billing.example:8080/",
        secret_in(tmp_path),
        allow_private=False,
        resolver=Names(address),
    )
    assert outcome is not None
    assert "private address" in outcome.reason


@pytest.mark.parametrize("host", [*PRIVATE, *(f"[{one}]" for one in PRIVATE6)])
async def test_an_address_inside_is_refused(receiver: Receiver, tmp_path: Path, host: str) -> None:
    url = f"http://{host}:{receiver.url.rpartition(':')[2]}"
    outcome = await send(url, secret_in(tmp_path), allow_private=False)
    assert outcome is not None
    assert "private address" in outcome.reason
    assert receiver.sent == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "localhost", "localhost."])
async def test_another_spelling_of_an_address_inside_leads_nowhere(
    receiver: Receiver, tmp_path: Path, host: str
) -> None:
    url = receiver.url.replace("127.0.0.1", host)
    assert await send(url, secret_in(tmp_path), allow_private=False) is not None
    assert receiver.sent == []


async def test_a_name_that_leads_inside_is_followed_where_that_is_allowed(
    receiver: Receiver, tmp_path: Path
) -> None:
    url = receiver.url.replace("127.0.0.1", "billing.example")
    assert await send(url, secret_in(tmp_path), resolver=Names("127.0.0.1")) is None
    assert len(receiver.sent) == 1


async def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert await send(receiver.url, secret_in(tmp_path)) is None


def test_every_secret_that_is_made_is_another() -> None:
    assert len({make_secret() for _ in range(20)}) == 20
