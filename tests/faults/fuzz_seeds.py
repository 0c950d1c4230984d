"""Where the fuzzing starts: real documents of every kind, and strategies that bend them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

from hypothesis import strategies as st
from pypdf import PdfWriter

from harvester.sandbox.pdf import Line, one_page

ORDER: dict[str, Any] = {
    "id": "VfdoQ0PZjGMzvYO46lNA6kbgN1eOJx9B",
    "idempotency_key": "INV-1",
    "type": "quantity",
    "status": "complete",
    "currency": "USD",
    "total_cost": "0.35",
    "quantity": "0.012069",
    "created_at": "2023-01-04T15:00:27.349Z",
    "bundles": [{"bundle_id": "q9aKx7b6nNXMk3Yv3pD1mlW5Od2eLZE8", "quantity": "0.011466"}],
    "projects": None,
    "certificate": "https://api.lune.co/v1/orders/VfdoQ0PZjGMzvYO46lNA6kbgN1eOJx9B/certificate",
    "metadata": {"customer": "Zoë"},
    "email": "someone@example.com",
}
ACCOUNT: dict[str, Any] = {
    "id": "ljmkOq7vXd239gAE9WALWQ8ZGVD5ExNz",
    "name": "ACME",
    "type": "live",
    "scope": "account",
    "currency": "USD",
    "beneficiary": "ACME Inc",
}
QUOTE: dict[str, Any] = {
    "currency": "USD",
    "estimated_quantity": "1",
    "estimated_offset_cost": "1.0",
    "estimated_total_cost": "1.1",
    "estimated_commission": "0.1",
    "bundles": [{"bundle_id": "b", "quantity": "1", "unit_price": "1", "offset_cost": "1"}],
}
CONFIGURATION = b"""
[lune]
base_url = "http://127.0.0.1:1/v1"
accounts = ["default"]
rate_limit = 12
[storage]
url = "file:///var/lib/x"
layout = "{account_id}/{created:%Y-%m}/{order_id}"
[harvest]
sweep_interval = "1h30m"
"""


def page(*rows: Any) -> dict[str, Any]:
    """Return a page of a listing that promises more."""
    return {"data": list(rows), "has_more": True, "next_cursor": "x"}


def error(code: str, message: str) -> dict[str, Any]:
    """Return Lune's error body."""
    return {"error": {"error_code": code, "message": message}}


def dump(value: Any) -> bytes:
    """Write JSON as a server may, surrogates escaped."""
    return json.dumps(value).encode()


def answer(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    """Return the bytes of a whole HTTP answer."""
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\nRetry-After: 3\r\nCF-Ray: 8a-LHR\r\n\r\n".encode() + body


def sandbox_pdf() -> bytes:
    """Return a PDF 1.4 with a table of one part, as the sandbox writes it."""
    return one_page([Line("Carbon credit certificate", 20), Line("Zoë (1.25 t)")], "Certificate")


def written_pdf() -> bytes:
    """Return a PDF with pages, an outline, metadata and an attachment, as pypdf writes it."""
    writer = PdfWriter()
    for number in range(3):
        writer.add_blank_page(595, 842)
        writer.add_outline_item(title=f"Page {number}", page_number=number)
    writer.add_metadata({"/Title": "Certificate", "/Author": "ACME"})
    writer.add_attachment("orders.csv", b"id,status\n" * 20)
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def streamed_pdf() -> bytes:
    """Return a PDF 1.5 whose objects and cross-references lie in compressed streams."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]>>",
    ]
    offsets = [sum(len(one) + 1 for one in objects[:number]) for number in range(len(objects))]
    index = b" ".join(b"%d %d" % (number, at) for number, at in enumerate(offsets, 1)) + b" "
    packed = zlib.compress(index + b" ".join(objects))
    body = b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n"
    holder = len(body)
    body += b"4 0 obj\n<</Type/ObjStm/N 3/First %d/Filter/FlateDecode/Length %d>>\nstream\n" % (
        len(index),
        len(packed),
    )
    body += packed + b"\nendstream\nendobj\n"
    start = len(body)
    rows = [(0, 0, 65535), *((2, 4, number) for number in range(3)), (1, holder, 0), (1, start, 0)]
    table = b"".join(struct.pack(">BIH", *row) for row in rows)
    packed = zlib.compress(table)
    body += b"5 0 obj\n<</Type/XRef/Size 6/W[1 4 2]/Root 1 0 R/Filter/FlateDecode/Length %d>>\n" % (
        len(packed)
    )
    return body + b"stream\n" + packed + b"\nendstream\nendobj\nstartxref\n%d\n%%%%EOF\n" % start


PDFS = {"classic": sandbox_pdf(), "pages": written_pdf(), "streams": streamed_pdf()}

SEEDS: dict[str, list[bytes]] = {
    "order": [dump(ORDER)],
    "page": [dump(page(ORDER, {**ORDER, "id": "../x"}))],
    "accounts": [dump(ACCOUNT), dump(page(ACCOUNT))],
    "quote": [dump(QUOTE)],
    "header": [b"3", b"Wed, 21 Oct 2015 07:28:00 GMT", b"1e9"],
    "pdf": list(PDFS.values()),
    "layout": [b"{account_id}/{created:%Y-%m}/{order_id}", b"a-{order_id}.{account_id}"],
    "duration": [b"1h30m", b"500ms"],
    "configuration": [CONFIGURATION],
    "secret": [b"sk_live_0123456789\n"],
    "line": ['said \u2028 {"event": "forged"}'.encode()],
    "http": [
        answer(200, dump(ORDER)),
        answer(200, dump(page(ORDER))),
        answer(200, PDFS["classic"], "application/pdf"),
        answer(429, b""),
        answer(401, dump(error("unauthorised", "no"))),
        answer(400, dump(error("id_invalid", "bad"))),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
}

texts = st.text(max_size=40) | st.sampled_from(
    [
        "../../x",
        "\x00",
        "\r\n",
        "\x1b[2J",
        "\u2028",
        "\u202e",
        "\ud800",
        "x" * 400,
        "1e999999",
        "{0}",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=8,
)


def bent(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return strategies for a document with some of its fields replaced, dropped or added."""
    changes = st.dictionaries(st.sampled_from(sorted(document)) | texts, values, max_size=4)
    dropped = st.sets(st.sampled_from(sorted(document)), max_size=2)
    return st.builds(
        lambda new, gone: {k: v for k, v in {**document, **new}.items() if k not in gone},
        changes,
        dropped,
    )


@st.composite
def mangled(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Return one of the seeds with pieces cut out, doubled, overwritten or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 64))
        piece = draw(st.binary(max_size=16) | st.just(bytes(data[at : at + size])))
        data[at : at + draw(st.integers(0, size))] = piece
    return bytes(data)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Return the strategy for a target: bent documents where it reads some, and mangled bytes."""
    orders, own = bent(ORDER), bent(ACCOUNT)
    structured: dict[str, st.SearchStrategy[bytes]] = {
        "order": orders.map(dump),
        "page": st.lists(orders, max_size=3).map(lambda rows: dump(page(*rows))),
        "accounts": own.map(dump) | st.lists(own, max_size=3).map(lambda rows: dump(page(*rows))),
        "quote": bent(QUOTE).map(dump),
        "http": st.builds(
            answer,
            st.sampled_from([100, 200, 204, 206, 302, 400, 401, 403, 404, 429, 502, 999]),
            st.builds(error, texts, texts).map(dump) | orders.map(dump),
            st.sampled_from(["application/json", "text/html", "text/plain", "application/pdf"]),
        ),
        "layout": st.text("{}acount_iordeY%m/-.=~\0é", max_size=60).map(str.encode),
        "duration": st.text("0123456789.smhd \u0661", max_size=20).map(str.encode),
        "line": st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    }
    free = mangled(SEEDS[name]) | st.binary(max_size=200)
    return structured[name] | free if name in structured else free
