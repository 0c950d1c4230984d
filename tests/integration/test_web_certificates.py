"""Certificates over the API: the stored bytes, whole or in part, or why there are none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox
from tests.integration.web_service import AUTHORIZED, Service, serving


@dataclass(frozen=True)
class Stored:
    """A service with one stored certificate."""

    service: Service
    order_id: str
    data: bytes
    file: Path

    @property
    def path(self) -> str:
        return f"/v1/orders/{self.order_id}/certificate"

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()}"'


@pytest.fixture
async def stored(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Stored]:
    order = sandbox.create_order("complete", hold=True)
    async with serving(sandbox, tmp_path, sweep_interval="1h") as service:
        await service.stored(1)
        (file,) = (tmp_path / "archive").rglob("*.pdf")
        yield Stored(service, order.id, file.read_bytes(), file)


async def test_a_certificate_comes_as_it_was_stored(stored: Stored) -> None:
    status, headers, body = await stored.service.get(stored.path)
    assert (status, body) == (200, stored.data)
    assert headers["ETag"] == stored.tag
    assert headers["Content-Type"] == "application/pdf"
    assert headers["Content-Disposition"] == f'attachment; filename="{stored.order_id}.pdf"'
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Length"] == str(len(stored.data))
    assert (await stored.service.get(f"{stored.path}?version=1"))[2] == stored.data
    status, headers, body = await stored.service.ask("HEAD", stored.path)
    assert (status, headers["Content-Length"], body) == (200, str(len(stored.data)), b"")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("0-9", 0, 10), ("10-", 10, None), ("-5", -5, None), ("5-99999999", 5, None)],
)
async def test_a_range_is_sent_alone(
    stored: Stored, asked: str, start: int, stop: int | None
) -> None:
    headers = AUTHORIZED | {"Range": f"bytes={asked}"}
    status, shown, body = await stored.service.get(stored.path, headers=headers)
    whole = len(stored.data)
    first, last, _ = slice(start, stop).indices(whole)
    assert (status, body) == (206, stored.data[start:stop])
    assert shown["Content-Range"] == f"bytes {first}-{last - 1}/{whole}"


async def test_a_range_that_lies_outside_is_refused_and_a_senseless_one_ignored(
    stored: Stored,
) -> None:
    headers = AUTHORIZED | {"Range": "bytes=99999999-"}
    status, shown, _ = await stored.service.get(stored.path, headers=headers)
    assert (status, shown["Content-Range"]) == (416, f"bytes */{len(stored.data)}")
    for asked in ("lines=1-2", "bytes=a-b", "bytes=0-1,4-5", "bytes=9-2"):
        headers = AUTHORIZED | {"Range": asked}
        status, _, body = await stored.service.get(stored.path, headers=headers)
        assert (status, body) == (200, stored.data), asked


async def test_a_range_of_another_file_is_the_whole_of_this_one(stored: Stored) -> None:
    for tag, wanted in ((stored.tag, 206), ('"another"', 200)):
        headers = AUTHORIZED | {"Range": "bytes=0-9", "If-Range": tag}
        assert (await stored.service.get(stored.path, headers=headers))[0] == wanted


async def test_who_has_the_file_already_is_told_so(stored: Stored) -> None:
    for tag, wanted in ((stored.tag, 304), (f'"x", W/{stored.tag}', 304), ("*", 304), ('"x"', 200)):
        headers = AUTHORIZED | {"If-None-Match": tag}
        status, shown, body = await stored.service.get(stored.path, headers=headers)
        assert (status, shown["ETag"]) == (wanted, stored.tag), tag
        assert body == (stored.data if wanted == 200 else b"")


async def test_a_file_that_is_not_what_was_stored_is_not_sent(stored: Stored) -> None:
    stored.file.chmod(0o600)
    stored.file.write_bytes(stored.data[:-1] + b"!")
    status, _, body = await stored.service.get(stored.path)
    assert status == 500
    assert "harvester verify" in json.loads(body)["detail"]
    stored.file.unlink()
    assert (await stored.service.get(stored.path))[0] == 500
    stored.file.symlink_to("/etc/passwd")
    status, _, body = await stored.service.get(stored.path)
    assert status == 503
    assert b"root:" not in body


async def test_without_a_certificate_the_answer_says_why(sandbox: Sandbox, tmp_path: Path) -> None:
    order = sandbox.create_order("placed", hold=True)
    async with serving(sandbox, tmp_path) as service:

        async def is_known() -> bool:
            return (await service.get(f"/v1/orders/{order.id}"))[0] == 200

        await service.until(is_known)
        status, headers, body = await service.get(f"/v1/orders/{order.id}/certificate")
        assert (status, headers["Content-Type"]) == (404, "application/problem+json")
        assert "placed and waits for payment" in json.loads(body)["detail"]
        for query in ("version=1", "version=999"):
            assert (await service.get(f"/v1/orders/{order.id}/certificate?{query}"))[0] == 404
        for query in ("version=0", "version=x", "version=-1"):
            assert (await service.get(f"/v1/orders/{order.id}/certificate?{query}"))[0] == 400
