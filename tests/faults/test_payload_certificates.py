"""Certificates that are cut, mislabelled, hostile, or odd but whole."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.faults.catalogue import fault
from tests.faults.instant_harvest import detail
from tests.faults.proxy import Exchange, changed, response, saying
from tests.faults.scene import Scene
from tests.unit.test_pdf import ONE_PAGE, PAGE, document

MEDIA = "application/pdf"


def _lose_the_table(pdf: bytes) -> bytes:
    return re.sub(rb"startxref\s+\d+", b"startxref\n%d" % (10 * len(pdf)), pdf)


def _lie_about_the_table(pdf: bytes) -> bytes:
    return re.sub(rb"startxref\s+\d+", b"startxref\n17", pdf)


CUT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "its header alone": lambda _: b"%PDF-1.7\n",
    "a web page": lambda _: b"<!DOCTYPE html><title>Sign in</title>" + b" " * 5000,
    "half of it": lambda pdf: pdf[: len(pdf) // 2],
    "all but its end mark": lambda pdf: pdf[: pdf.rindex(b"%%EOF")],
    "no header": lambda pdf: pdf[5:],
    "a table beyond its end": _lose_the_table,
    "a table that is none": _lie_about_the_table,
    "too much after its end": lambda pdf: pdf + b"x" * 2000,
    "only zeros": lambda pdf: bytes(len(pdf)),
    "a hole of zeros": lambda pdf: pdf[:100] + bytes(len(pdf) - 100),
}


@fault("P9")
@pytest.mark.parametrize("cut", CUT.values(), ids=CUT.keys())
async def test_what_is_no_whole_pdf_never_gets_a_final_name(
    scene: Scene, cut: Callable[[bytes], bytes]
) -> None:
    order = scene.order()
    scene.proxy.script(changed(cut), "certificate")
    report = await scene.drain()
    [line] = report.unfinished
    assert "not a whole PDF" in line
    assert scene.home.files() == set()
    found = (await detail(scene, order.id)).order
    assert (found.status, found.certificate_state, found.attempts) == ("complete", "failed", 1)
    assert found.next_check_at is not None
    assert (await scene.drain()).unfinished == []
    assert len(scene.home.files()) == 1


@fault("P9")
@pytest.mark.parametrize("junk", [b"\n", b"\r\n\r\n", b"<!-- cached -->", b"x" * 1000])
async def test_junk_that_readers_bear_is_kept_as_it_came(scene: Scene, junk: bytes) -> None:
    order = scene.order()
    scene.proxy.script(changed(lambda pdf: pdf + junk), "certificate")
    assert (await scene.drain()).unfinished == []
    await _assert_kept(scene, order.id, (scene.lune.certificate(order.id) or b"") + junk)


async def _assert_kept(scene: Scene, order_id: str, data: bytes) -> None:
    [version] = (await detail(scene, order_id)).certificates
    assert (scene.home.archive / version.file.path).read_bytes() == data


SCRIPT = b"<</S/JavaScript/JS(app.launchURL\\('https://elsewhere.invalid/', true\\);)>>"
FILE = b"<</Names[(x)<</Type/Filespec/F(../../invoice.exe)/EF<</F 4 0 R>>>>]>>"
PROGRAM = b"<</Type/EmbeddedFile/Length 64>>stream\n" + b"MZ".ljust(64, b"\0") + b"\nendstream"

HARMFUL = {
    "a script": document(
        b"<</Type/Catalog/Pages 2 0 R/OpenAction" + SCRIPT + b">>", ONE_PAGE, PAGE
    ),
    "a program inside": document(
        b"<</Type/Catalog/Pages 2 0 R/Names<</EmbeddedFiles" + FILE + b">>>>",
        ONE_PAGE,
        PAGE,
        PROGRAM,
    ),
    "also a web page": b"<html><script>alert(1)</script><!--\n"
    + document(b"<</Type/Catalog/Pages 2 0 R>>", ONE_PAGE, PAGE)
    + b"-->",
}


@fault("P10")
@pytest.mark.parametrize("data", HARMFUL.values(), ids=HARMFUL.keys())
async def test_a_pdf_that_does_harm_when_opened_is_kept_byte_by_byte_and_not_opened(
    scene: Scene, data: bytes
) -> None:
    order = scene.order()
    scene.proxy.script(saying(response(200, data, MEDIA)), "certificate")
    assert (await scene.drain()).unfinished == []
    await _assert_kept(scene, order.id, data)
    assert {seen.endpoint for seen in scene.proxy.requests} <= {
        "account",
        "accounts",
        "orders",
        "certificate",
    }


@fault("P11")
@pytest.mark.parametrize(
    ("media", "taken"),
    [
        ("application/pdf", True),
        ("Application/PDF; charset=binary", True),
        ("application/octet-stream", True),
        ("text/html", False),
        ("text/html; application/pdf", False),
        ("application/json", False),
        ("", False),
    ],
)
async def test_a_pdf_is_taken_only_when_it_is_served_as_one(
    scene: Scene, media: str, *, taken: bool
) -> None:
    order = scene.order()
    pdf = scene.lune.certificate(order.id)
    assert pdf is not None
    scene.proxy.script(saying(response(200, pdf, media)), "certificate")
    report = await scene.drain()
    assert (report.unfinished == []) is taken
    assert len(scene.home.files()) == taken
    if not taken:
        assert "not as a PDF" in report.unfinished[0]
        assert (await scene.drain()).unfinished == []


@fault("P12")
@pytest.mark.parametrize(
    "disposition",
    [
        'attachment; filename="../../../etc/cron.d/x"',
        "attachment; filename=/etc/passwd",
        "attachment; filename*=UTF-8''..%2F..%2Fx.pdf",
        'attachment; filename="' + "x" * 5000 + '.pdf"',
        "filename",
    ],
)
async def test_the_name_that_is_served_names_nothing(scene: Scene, disposition: str) -> None:
    order = scene.order()

    async def named(exchange: Exchange) -> None:
        head, _, body = (await exchange.upstream()).partition(b"\r\n\r\n")
        head = re.sub(rb"(?i)\r\ncontent-disposition: [^\r]*", b"", head)
        line = b"\r\nContent-Disposition: " + disposition.encode()
        await exchange.say(head + line + b"\r\n\r\n" + body)

    scene.proxy.script(named, "certificate")
    assert (await scene.drain()).unfinished == []
    [name] = scene.home.files()
    assert name.endswith(f"/{order.id}.pdf")
    everything = {path.name for path in scene.home.archive.rglob("*") if path.is_file()}
    assert {one for one in everything if not one.startswith(".")} == {f"{order.id}.pdf"}
