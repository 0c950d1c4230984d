"""A stored certificate as an answer: its digest as its tag, whole or in part."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from aiohttp import ETag, web

from harvester.archive.directory import DirectoryArchive
from harvester.domain.certificates import Certificate
from harvester.domain.explain import waits_for
from harvester.ledger.queries import OrderDetail
from harvester.web.problems import Problem

_GONE: Final = "its file is not in the archive as it was stored; `harvester verify` tells more"


def choose(detail: OrderDetail, version: int | None) -> Certificate:
    """Return the version that is asked for, the newest unless one is; a 404 says why not.

    While a certificate is owed an interim one is had only by its version.
    """
    order = detail.order
    if version is not None:
        for certificate in detail.certificates:
            if certificate.version == version:
                return certificate
        raise Problem(404, "the order has no certificate of this version")
    if order.certificate_state == "stored" and order.certificate is not None:
        return order.certificate
    wait = waits_for(order.status, order.certificate_state, order.failure_reason, detail.document)
    raise Problem(404, f"none yet: the order is {order.status} and waits for {wait or 'nothing'}")


async def send_certificate(
    request: web.Request, archive: DirectoryArchive, order_id: str, chosen: Certificate
) -> web.StreamResponse:
    """Send a stored file, checked against its digest first; its bytes never change."""
    file = chosen.file
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{order_id}.pdf"',
    }
    answer = web.StreamResponse(headers=headers)
    answer.etag = ETag(file.sha256)
    if _is_known(request, file.sha256):
        answer.set_status(304)
        return answer
    async with archive.open(file) as opened:
        if opened is None:
            raise Problem(500, _GONE)
        start, stop = _range(request, file.sha256, file.size)
        if (start, stop) != (0, file.size):
            answer.set_status(206)
            answer.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        answer.content_type = "application/pdf"
        answer.content_length = stop - start
        await answer.prepare(request)
        if request.method != "HEAD":
            async for piece in opened.pieces(start, stop):
                await answer.write(piece)
        await answer.write_eof()
    return answer


def _is_known(request: web.Request, sha256: str) -> bool:
    known = request.if_none_match or ()
    return any(tag.value in {sha256, "*"} for tag in known)


def _range(request: web.Request, sha256: str, size: int) -> tuple[int, int]:
    """Return which bytes to send; a range that makes no sense, or is of another file, is all."""
    if request.headers.get("If-Range", f'"{sha256}"') != f'"{sha256}"':
        return 0, size
    wanted = slice(None)
    with suppress(ValueError):
        wanted = request.http_range
    start, stop, _ = wanted.indices(size)
    if start >= stop:
        raise Problem(416, headers={"Content-Range": f"bytes */{size}"})
    return start, stop
