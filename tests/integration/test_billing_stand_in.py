"""The billing stand-in of deploy/docker, run as it is: what it accepts, refuses and puts off."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from standardwebhooks import Webhook

from harvester.cli.exits import DONE
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import PATIENCE, Home, Running, until

PROGRAM = Path(__file__).parents[2] / "deploy" / "docker" / "billing" / "billing.py"
PDF = b"%PDF-1.7 a certificate"
CERTIFICATE = "acct/2026-01/ORDER1.pdf"


def a_secret(fill: bytes) -> str:
    return f"whsec_{base64.b64encode(fill * 32).decode()}"


SECRET = a_secret(b"s")


class Billing:
    """A folder with an archive and a secret, and the program that runs on them."""

    def __init__(self, folder: Path, archive: Path | None = None) -> None:
        self.archive = archive or folder / "archive"
        self.archive.mkdir(exist_ok=True)
        self.secret_file = folder / "billing_secret"
        self.secret_file.write_text(f"{SECRET}\n")
        self.secret_file.chmod(0o600)
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            PROGRAM,
            env={
                **os.environ,
                "BILLING_LISTEN": "127.0.0.1:0",
                "BILLING_SECRET_FILE": str(self.secret_file),
                "BILLING_CERTIFICATES": str(self.archive),
            },
            stdout=PIPE,
            stderr=PIPE,
        )
        running = Running(process)
        readers = [
            asyncio.create_task(running.listen(process.stdout, running.out)),
            asyncio.create_task(running.listen(process.stderr, running.err)),
        ]
        try:
            await until(lambda: running.out or running.ended)
            assert running.out, "".join(running.err)
            self.url = f"http://{running.out[0].split()[-1]}/events"
            yield running
        finally:
            if not running.ended:
                process.kill()
            await process.wait()
            await asyncio.gather(*readers)

    def file(self, data: bytes = PDF, path: str = CERTIFICATE) -> None:
        file = self.archive / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    async def post(
        self,
        body: bytes | AsyncIterator[bytes],
        headers: dict[str, str],
        path: str = "/events",
    ) -> int:
        url = self.url.removesuffix("/events") + path
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, data=body, headers=headers) as answer,
        ):
            return answer.status


def stored(**changed: Any) -> bytes:
    data = {
        "account_id": "acct",
        "order_id": "ORDER1",
        "idempotency_key": "INV-1",
        "version": 1,
        "kind": "final",
        "sha256": hashlib.sha256(PDF).hexdigest(),
        "size": len(PDF),
        "path": CERTIFICATE,
    }
    return json.dumps({"type": "certificate.stored", "data": data | changed}).encode()


def signed(body: bytes, secret: str = SECRET, age: timedelta = timedelta()) -> dict[str, str]:
    at = datetime.now(UTC) - age
    return {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", at, body.decode()),
    }


async def test_every_certificate_of_a_harvest_becomes_one_invoice(tmp_path: Path) -> None:
    lune = Sandbox(SandboxOptions(orders=0, client_accounts=0, speed=0, rate_limit=0))
    async with lune:
        home = Home(tmp_path, lune, harvest__sweep_interval="200ms", harvest__longest_interval="1s")
        billing = Billing(tmp_path, home.archive)
        async with billing.running() as stand_in:
            with home.config.open("a") as config:
                config.write(
                    '[[events.receivers]]\nname = "billing"\nallow_private = true\n'
                    f'url = "{billing.url}"\nsecret_file = "{billing.secret_file}"\n'
                )
            async with home.daemon() as daemon:
                for number in range(3):
                    lune.create_order("complete", hold=True, idempotency_key=f"INV-{number}")
                await until(lambda: len(stand_in.out) == 1 + 3)
                delivered = (await home.run("events", "list", "--json")).rows()
                numbers = [str(one["seq"]) for one in delivered]
                again = await home.run("events", "resend", *numbers, "--json")
                assert len(again.rows()) == len(delivered)

                listed = ("events", "list", "--undelivered", "--json")
                async with asyncio.timeout(PATIENCE):
                    while (await home.run(*listed)).rows():
                        pass
                assert (await daemon.end()).code == DONE
            assert (await stand_in.end()).code == 0
    rows = (await home.orders()).values()
    assert sorted(stand_in.out[1:]) == sorted(
        f"invoice {row['idempotency_key']}: certificate v1 "
        f"{Path(row['certificate']['path']).relative_to(home.archive)}, "
        f"{row['certificate']['size']} bytes\n"
        for row in rows
    )
    assert stand_in.err == []


BODY = stored()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(BODY, a_secret(b"x")),
        signed(stored(version=2)),
        signed(BODY) | {"webhook-id": "evt_2"},
        signed(BODY) | {"webhook-signature": "v1,"},
        signed(BODY) | {"webhook-signature": "nonsense"},
        signed(BODY) | {"webhook-timestamp": "nan"},
    ],
    ids=["unsigned", "secret", "body", "id", "empty", "nonsense", "timestamp"],
)
async def test_what_the_harvester_did_not_sign_is_refused(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    billing = Billing(tmp_path)
    billing.file()
    async with billing.running() as stand_in:
        assert await billing.post(BODY, headers) == 401
        await stand_in.end()
    assert len(stand_in.out) == 1
    assert stand_in.err == ["refused: not signed by the harvester\n"]


@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(minutes=-6)])
async def test_an_old_signature_is_refused_so_that_nobody_can_repeat_it(
    tmp_path: Path, age: timedelta
) -> None:
    billing = Billing(tmp_path)
    billing.file()
    async with billing.running():
        assert await billing.post(BODY, signed(BODY, age=age)) == 401
        assert await billing.post(BODY, signed(BODY)) == 204


async def test_a_secret_that_is_added_counts_at_once_and_both_count_while_it_is_replaced(
    tmp_path: Path,
) -> None:
    billing = Billing(tmp_path)
    billing.file()
    newer = a_secret(b"n")
    async with billing.running():
        assert await billing.post(BODY, signed(BODY, newer)) == 401
        billing.secret_file.write_text(f"{newer}\n{SECRET}\n")
        assert await billing.post(BODY, signed(BODY, newer)) == 204
        assert await billing.post(BODY, signed(BODY)) == 204


async def test_an_event_whose_certificate_is_not_there_comes_again(tmp_path: Path) -> None:
    billing = Billing(tmp_path)
    async with billing.running() as stand_in:
        assert await billing.post(BODY, signed(BODY)) == 503
        billing.file()
        assert await billing.post(BODY, signed(BODY)) == 204
        assert await billing.post(BODY, signed(BODY)) == 204
        await stand_in.end()
    assert stand_in.out[1:] == [f"invoice INV-1: certificate v1 {CERTIFICATE}, {len(PDF)} bytes\n"]
    assert stand_in.err == [f"put off: {CERTIFICATE} cannot be read: No such file or directory\n"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sha256": "0" * 64}, "is not the file that the event tells of"),
        ({"path": "../outside.pdf"}, "is not in the archive"),
    ],
)
async def test_a_file_that_is_not_the_event_s_is_not_invoiced(
    tmp_path: Path, changed: dict[str, str], words: str
) -> None:
    billing = Billing(tmp_path)
    billing.file()
    (tmp_path / "outside.pdf").write_bytes(PDF)
    body = stored(**changed)
    async with billing.running() as stand_in:
        assert await billing.post(body, signed(body)) == 503
        await stand_in.end()
    assert words in stand_in.err[0]
    assert len(stand_in.out) == 1


async def test_events_of_other_kinds_are_accepted(tmp_path: Path) -> None:
    billing = Billing(tmp_path)
    data = {"idempotency_key": None, "order_id": "ORDER1", "reason": "no whole PDF", "version": 1}
    async with billing.running() as stand_in:
        for number, kind in enumerate(("certificate.failed", "certificate.superseded", "other")):
            body = json.dumps({"type": kind, "data": data}).encode()
            at = datetime.now(UTC)
            headers = signed(body) | {
                "webhook-id": str(number),
                "webhook-timestamp": str(int(at.timestamp())),
                "webhook-signature": Webhook(SECRET).sign(str(number), at, body.decode()),
            }
            assert await billing.post(body, headers) == 204
        await stand_in.end()
    assert stand_in.out[1:] == [
        "invoice ORDER1: there is no certificate yet: no whole PDF\n",
        "invoice ORDER1: certificate v1 is out of date\n",
    ]


async def _in_pieces() -> AsyncIterator[bytes]:
    yield BODY


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        (BODY, "/", 404),
        (b"x" * (64 * 1024 + 1), "/events", 413),
        (None, "/events", 411),
    ],
    ids=["elsewhere", "too large", "without a length"],
)
async def test_what_is_no_event_is_refused_unread(
    tmp_path: Path, body: bytes | None, path: str, status: int
) -> None:
    billing = Billing(tmp_path)
    async with billing.running():
        assert await billing.post(body or _in_pieces(), signed(BODY), path) == status
