"""Answers that are cut, stretched, stuffed, or no answers at all."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from dataclasses import replace

from harvester.lune import ClientOptions, Deadlines
from harvester.runtime.drain import DrainReport
from harvester.sandbox.world import Order
from tests.acceptance.harness import events
from tests.faults.catalogue import fault
from tests.faults.proxy import Answer, Exchange, reset, response, saying, silence, trickle
from tests.faults.scene import HASTY, Scene

PDF = "application/pdf"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SHORT = replace(HASTY, deadlines=Deadlines(connect=0.8, read=0.8, total=5.0, certificate_total=5.0))


async def drain_once_faulty(
    scene: Scene, *answers: Answer, options: ClientOptions = HASTY
) -> DrainReport:
    """Drain as many complete orders as there are answers, each of which is given once."""
    for answer in answers:
        scene.order()
        scene.proxy.script(answer, "certificate")
    return await scene.drain(options=options)


def require_all_stored(scene: Scene, report: DrainReport, orders: int) -> None:
    """Require that each order took two requests, and what is stored is what Lune has."""
    assert report.collected.stored == orders
    assert report.unfinished == []
    assert scene.proxy.count("certificate") == 2 * orders
    assert stored(scene) == sorted(certificate(scene, order) for order in all_orders(scene))


def all_orders(scene: Scene) -> list[Order]:
    return [order for account in scene.lune.accounts for order in scene.lune.orders(account.id)]


def certificate(scene: Scene, order: Order) -> bytes:
    data = scene.lune.certificate(order.id)
    assert data is not None
    return data


def stored(scene: Scene) -> list[bytes]:
    return sorted((scene.home.archive / name).read_bytes() for name in scene.home.files())


def reasons(scene: Scene) -> str:
    """Return why requests were made again, a line each."""
    return "\n".join(one["reason"] for one in events(scene.log_text(), "request repeated"))


def cut(share: float, *, then: Answer | None = None) -> Answer:
    """Say this share of the real answer, then close, or do something else."""

    async def answer(exchange: Exchange) -> None:
        whole = await exchange.upstream()
        await exchange.say(whole[: int(len(whole) * share)])
        await asyncio.sleep(0.05)  # so that it has arrived before the end of it does
        if then is None:
            exchange.writer.close()
        else:
            await then(exchange)

    return answer


def stuffed(extra: bytes) -> Answer:
    """Answer as Lune does, and say something more in the same breath that nobody asked for."""

    async def answer(exchange: Exchange) -> None:
        await exchange.say(await exchange.upstream() + extra)

    return answer


@fault("N3")
async def test_an_order_without_an_answer_keeps_no_other_waiting(scene: Scene) -> None:
    scene.order()
    report = await drain_once_faulty(scene, silence, options=SHORT)
    assert report.collected.stored == 2
    assert scene.proxy.count("certificate") == 3
    happened = [one["event"] for one in events(scene.log_text())]
    assert happened.index("certificate stored") < happened.index("request repeated")
    assert "timeout: no bytes in time" in reasons(scene)


@fault("N4")
async def test_a_certificate_that_trickles_is_given_up_long_before_its_deadline(
    scene: Scene,
) -> None:
    deadlines = Deadlines(read=5, certificate_total=100, floor=1024, floor_window=0.3)
    crawl = trickle(response(200, b"%PDF-" * 200, PDF), pause=0.02)
    report = await drain_once_faulty(scene, crawl, options=replace(HASTY, deadlines=deadlines))
    require_all_stored(scene, report, 1)
    assert "timeout: too few bytes in time" in reasons(scene)


@fault("N4")
async def test_a_listing_that_trickles_is_left_at_its_deadline(scene: Scene) -> None:
    scene.order("paid")
    scene.proxy.script(trickle(response(200, b" " * 10_000), pause=0.02), "orders")
    report = await scene.drain(options=replace(HASTY, deadlines=Deadlines(read=5, total=0.5)))
    assert report.swept.new == 1
    assert "timeout: not whole in time" in reasons(scene)


@fault("N4")
async def test_a_slow_certificate_above_the_floor_is_waited_for(scene: Scene) -> None:
    async def slowly(exchange: Exchange) -> None:
        whole = await exchange.upstream()
        await trickle(whole, pause=0.02, size=len(whole) // 25)(exchange)

    deadlines = Deadlines(read=5, certificate_total=100, floor=1024, floor_window=0.1)
    report = await drain_once_faulty(scene, slowly, options=replace(HASTY, deadlines=deadlines))
    assert report.collected.stored == 1
    assert scene.proxy.count("certificate") == 1


@fault("N5", "N6", "N7")
async def test_a_certificate_cut_on_its_way_is_fetched_again(scene: Scene) -> None:
    cuts = (
        cut(0.5, then=silence),
        cut(0.01, then=reset),
        cut(0.5, then=reset),
        reset,
        cut(0.5),
        saying(CHUNKED, b"10\r\n%PDF-", close=True),
    )
    report = await drain_once_faulty(scene, *cuts, options=SHORT)
    require_all_stored(scene, report, len(cuts))
    assert "timeout: no bytes in time" in reasons(scene)
    assert "truncated" in reasons(scene)


@fault("N5", "N6")
async def test_a_listing_cut_on_its_way_is_read_again(scene: Scene) -> None:
    for account, answer in zip(
        scene.lune.accounts, (cut(0.9, then=silence), cut(0.9, then=reset)), strict=True
    ):
        scene.order("paid", account_id=account.id)
        scene.proxy.script(answer, "orders")
    report = await scene.drain(options=SHORT)
    assert (report.swept.new, report.unfinished) == (2, [])
    assert scene.proxy.count("orders") == 4


@fault("N8", "N9")
async def test_a_certificate_whose_cut_nobody_announced_is_no_whole_pdf(scene: Scene) -> None:
    first, second = scene.order(), scene.order()
    part = certificate(scene, first)[:-600]
    scene.proxy.script(saying(HEAD + b"\r\n" + part, close=True), "certificate")
    scene.proxy.script(
        saying(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(part), part)), "certificate"
    )
    report = await scene.drain()
    assert report.collected.failed == 2
    assert stored(scene) == []
    assert len(report.unfinished) == 2
    kept = [path for path in (scene.home.archive / "quarantine").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept].count(part) == 2

    report = await scene.drain()
    assert report.collected.stored == 2
    assert stored(scene) == sorted(certificate(scene, order) for order in (first, second))


@fault("N10")
async def test_what_follows_an_answer_reaches_no_file_and_no_other_order(scene: Scene) -> None:
    forged = response(200, b"%PDF-1.4 forged " + b" " * 2000 + b"%%EOF\n", PDF)
    answers = [stuffed(b"junk"), stuffed(forged), stuffed(b"\0"), stuffed(forged * 2)]
    for _ in range(8):
        scene.order()
    report = await drain_once_faulty(scene, *answers)
    assert (report.collected.stored, report.collected.failed) == (12, 0)
    assert stored(scene) == sorted(certificate(scene, order) for order in all_orders(scene))


@fault("N11")
async def test_a_compressed_answer_is_never_unpacked(scene: Scene) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    scene.proxy.script(saying(response(200, bomb, PDF, Content_Encoding="gzip")), "certificate")
    scene.proxy.script(saying(response(200, bomb, Content_Encoding="gzip")), "orders")
    scene.order()
    tracemalloc.start()
    try:
        report = await scene.drain()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.collected.stored == 1
    assert peak < 20_000_000
    assert reasons(scene).count("an encoding that was not asked for") == 2
    assert {seen.headers["accept-encoding"] for seen in scene.proxy.requests} == {"identity"}


class Endless:
    """Answer for ever; ``sent`` is how many bytes the harvester let come."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.sent = 0

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.say(self._head)
        while True:
            await exchange.say(bytes(262_144))
            self.sent += 262_144


@fault("N12")
async def test_an_endless_answer_is_left_at_its_cap(scene: Scene) -> None:
    certificate_answer = Endless(HEAD + b"\r\n")
    page = Endless(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    scene.proxy.script(certificate_answer, "certificate")
    scene.proxy.script(page, "orders")
    scene.order()
    scene.order()
    deadlines = Deadlines(certificate_total=30, total=30)
    report = await scene.drain(options=replace(HASTY, deadlines=deadlines))
    assert (report.collected.failed, report.collected.stored) == (1, 1)
    assert scene.proxy.count("certificate") == 2
    in_buffers = 16 * 2**20
    assert 32 * 2**20 <= certificate_answer.sent < 32 * 2**20 + in_buffers
    assert 8 * 2**20 <= page.sent < 8 * 2**20 + in_buffers
    assert "too large" in report.unfinished[0]


@fault("N24")
async def test_what_is_not_http_is_asked_again_and_quoted_nowhere(scene: Scene) -> None:
    scene.secrets.append("CANARY-header-value")
    field = b"X-Odd: CANARY-header-value"
    noise = (
        b"HTTP/1.1 200 OK\r\n" + field + b"x" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + (field + b"\r\n") * 10_000 + b"\r\n",
        b"HTTP/1.1 CANARY-header-value\r\n\r\n",
        b"SSH-2.0-CANARY-header-value\r\n\r\n",
        HEAD + field.replace(b":", b"") + b"\r\n\r\n",
        HEAD + field + b"\r\nContent-Length: CANARY-header-value\r\n\r\n",
    )
    report = await drain_once_faulty(scene, *(saying(one, close=True) for one in noise))
    require_all_stored(scene, report, len(noise))
    assert reasons(scene).count("protocol: not an HTTP answer") == len(noise)
    assert "Traceback" not in scene.log_text()


@fault("N24")
async def test_a_folded_header_line_forges_no_other(scene: Scene) -> None:
    order = scene.order()
    whole = certificate(scene, order)
    fold = b"X-Odd: first\r\n Content-Length: 5\r\nContent-Length: %d\r\n\r\n" % len(whole)
    scene.proxy.script(saying(HEAD + fold + whole), "certificate")
    report = await scene.drain()
    assert report.collected.stored == 1
    assert stored(scene) == [whole]


async def endless_hints(exchange: Exchange) -> None:
    while True:
        await exchange.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.01)


@fault("N25")
async def test_nothing_but_a_200_is_a_certificate(scene: Scene) -> None:
    body = certificate(scene, scene.order())
    scene.proxy.script(saying(response(206, body, PDF)), "certificate")
    no_200 = (
        saying(response(206, body, PDF, Content_Range=f"bytes 0-{len(body) - 1}/{len(body)}")),
        saying(response(203, body, PDF)),
        saying(b"HTTP/1.1 204 No Content\r\n\r\n"),
        saying(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        endless_hints,
    )
    options = replace(HASTY, deadlines=Deadlines(read=1.0, certificate_total=1.0))
    report = await drain_once_faulty(scene, *no_200, options=options)
    require_all_stored(scene, report, len(no_200) + 1)
    assert reasons(scene).count("a status the API does not serve") == len(no_200)


@fault("N25")
async def test_nothing_but_a_200_is_a_listing(scene: Scene) -> None:
    for account, status in zip(scene.lune.accounts, (204, 206), strict=True):
        scene.order("paid", account_id=account.id)
        page = b'{"has_more": false, "next_cursor": null, "data": []}' if status == 206 else b""
        scene.proxy.script(saying(response(status, page)), "orders")
    report = await scene.drain()
    assert (report.swept.new, report.unfinished) == (2, [])
    assert reasons(scene).count("a status the API does not serve") == 2


@fault("N25")
async def test_a_100_continue_before_the_answer_does_no_harm(scene: Scene) -> None:
    async def continued(exchange: Exchange) -> None:
        await exchange.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        await exchange.say(await exchange.upstream())

    report = await drain_once_faulty(scene, continued)
    assert report.collected.stored == 1
    assert scene.proxy.count("certificate") == 1
