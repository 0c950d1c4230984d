"""What an event does: it is written once, and makes us ask; what it claims is never believed."""

from __future__ import annotations

import asyncio
import gzip
import time
from datetime import timedelta
from typing import Any

import pytest

from harvester.context import utc_now
from harvester.ledger.hints import webhook_health
from tests.faults.catalogue import fault
from tests.faults.scene import Scene
from tests.faults.webhook_client import WebhookClient, body_of, event, header, webhook_client

COUNT = "SELECT count(*) FROM webhook_events"
HINTS = "SELECT order_id, status FROM hints"


async def sources(client: WebhookClient, order_id: str) -> list[tuple[str, str]]:
    query = f"SELECT to_status, source FROM history WHERE order_id = '{order_id}' ORDER BY seq"
    return [(status, source) for status, source in await client.rows(query)]


@fault("W5")
async def test_a_replay_is_known_again_and_asks_for_nothing(scene: Scene) -> None:
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        scene.lune.move_order(order.id, "complete")
        assert await client.send(event(order.id)) == 200
        await client.app.sweep.follow_hints()
        asked = scene.proxy.count()
        assert await client.send(event(order.id)) == 200
        await client.app.sweep.follow_hints()
        assert (scene.proxy.count(), client.woken) == (asked, 1)
        assert await client.rows(COUNT) == [(1,)]
        assert await sources(client, order.id) == [("paid", "drain"), ("complete", "webhook")]
        await client.app.collector.run_once()


@pytest.mark.parametrize("off", [-400, 400])
@fault("W5")
async def test_a_stale_event_is_a_hint_and_nothing_else(scene: Scene, off: int) -> None:
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        assert await client.send(event(order.id), at=time.time() + off) == 200
        assert await client.rows(HINTS) == [(order.id, None)]
        assert client.webhooks.outcomes == {"stale": 1}
        asked = scene.proxy.count("order")
        await client.app.sweep.follow_hints()
        assert scene.proxy.count("order") == asked + 1
        assert await client.status(order.id) == "paid"
        assert await client.rows(HINTS) == []
        account = scene.lune.accounts[0].id
        health = await webhook_health(client.app.database, account, utc_now() - timedelta(days=1))
        assert health.received_at is None


@fault("W6")
async def test_the_same_event_a_thousand_times_at_once_is_one_row(scene: Scene) -> None:
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        body = body_of(event(order.id, account_id=client.account_id))
        headers = {"Lune-HMAC": header(body)}
        gate = asyncio.Semaphore(50)

        async def send() -> int:
            async with gate:
                return await client.post(body, headers)

        assert set(await asyncio.gather(*(send() for _ in range(1000)))) == {200}
        assert await client.rows(COUNT) == [(1,)]
        assert client.woken == 1


BAD: list[Any] = [
    None,
    17,
    "event",
    [],
    {},
    event("o1", event_id=None),
    event("o1", event_id=""),
    event("o1", event_id="x" * 300),
    event("o1", event_id="nul\0"),
    event("o1", event_type=5),
    event("o1", sequence=None),
    event("o1", data=None),
    event("o1", data={}),
    event("o1", data={"order": None}),
    event("o1", data={"order": {"id": "../../etc/passwd"}}),
    event("o1", data={"order": {"id": "\ud800"}}),
    event("o1", account_id="a/b"),
]


@fault("W7")
async def test_bad_events_are_kept_apart_and_leave_the_good_ones_alone(scene: Scene) -> None:
    orders = [scene.order("paid") for _ in range(3)]
    async with webhook_client(scene) as client:
        good = [
            event(order.id, number=n, account_id=client.account_id)
            for n, order in enumerate(orders)
        ]
        middle = [
            one | {"event_id": f"bad{n}"}
            if isinstance(one, dict) and one.get("event_id") == "event1"
            else one
            for n, one in enumerate(BAD)
        ]
        assert await client.post(body_of(good[0], *middle, *good[1:])) == 200
        assert await client.rows(f"{COUNT} WHERE problem IS NULL") == [(3,)]
        assert await client.rows(f"{COUNT} WHERE problem IS NOT NULL") == [(len(BAD),)]
        assert len(await client.rows(HINTS)) == 3
        await client.app.sweep.follow_hints()


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[]", b'{"events": 1}', b"\xff", b"[" * 9999])
@fault("W7")
async def test_a_genuine_body_that_is_no_list_of_events_is_kept_and_acknowledged(
    scene: Scene, body: bytes
) -> None:
    async with webhook_client(scene) as client:
        assert await client.post(body) == 200
        assert await client.rows(f"{COUNT} WHERE problem IS NOT NULL") == [(1,)]


@pytest.mark.parametrize(
    "changed",
    [
        {"event_type": "order.refunded"},
        {"event_type": "invoice.sent", "data": {"invoice": {}}},
        {"api_version": "v2"},
        {"account_id": None},
    ],
)
@fault("W8")
async def test_what_is_not_known_is_kept_raw_and_never_refused(
    scene: Scene, changed: dict[str, Any]
) -> None:
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        scene.lune.move_order(order.id, "retiring")
        assert await client.post(body_of(event(order.id, "x") | changed)) == 200
        assert await client.rows(f"{COUNT} WHERE problem IS NULL") == [(1,)]
        await client.app.sweep.follow_hints()


@fault("W8")
async def test_an_event_without_account_finds_the_order_it_is_about(scene: Scene) -> None:
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        scene.lune.move_order(order.id, "retiring")
        assert await client.post(body_of(event(order.id, "retiring"))) == 200
        await client.app.sweep.follow_hints()
        assert await client.status(order.id) == "retiring"


@fault("W12")
async def test_an_event_and_the_check_it_asks_for_are_one_transaction(scene: Scene) -> None:
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        async with client.app.database.transaction() as tx:
            await tx.exec_driver_sql(
                "CREATE TRIGGER no_hints BEFORE INSERT ON hints "
                "BEGIN SELECT RAISE(ABORT, 'no room'); END"
            )
        assert await client.send(event(order.id)) >= 500
        assert await client.rows(COUNT) == [(0,)]
        async with client.app.database.transaction() as tx:
            await tx.exec_driver_sql("DROP TRIGGER no_hints")
        assert await client.send(event(order.id)) == 200
        assert await client.rows(HINTS) == [(order.id, "complete")]
        await client.app.sweep.follow_hints()


@fault("W13")
async def test_an_older_event_that_comes_later_does_not_change_what_is_waited_for(
    scene: Scene,
) -> None:
    order = scene.order("received")
    async with webhook_client(scene) as client:
        for number, kind in ((10, "completed"), (9, "paid"), (10, "retiring")):
            changed = {"event_id": f"{kind}-event"}
            assert await client.send(event(order.id, kind, number) | changed) == 200
        # An equal sequence is not an older one: the third is news, the second was none.
        assert await client.rows(HINTS) == [(order.id, "retiring")]
        await client.app.sweep.follow_hints()


@fault("W13")
async def test_events_of_two_accounts_come_in_any_order(scene: Scene) -> None:
    client_account = scene.lune.accounts[1].id
    one, other = scene.order("paid"), scene.order("paid", account_id=client_account)
    async with webhook_client(scene) as client:
        for order in (one, other):
            scene.lune.move_order(order.id, "retiring")
        late = event(other.id, "retiring", 9, account_id=client_account)
        early = event(one.id, "retiring", 1, account_id=client.account_id)
        assert await client.post(body_of(late, early)) == 200
        await client.app.sweep.follow_hints()
        for order in (one, other):
            assert await client.status(order.id) == "retiring"


@fault("W14")
async def test_a_webhook_ahead_of_the_api_is_not_believed_but_asked_about_again(
    scene: Scene,
) -> None:
    order = scene.order("retiring")
    async with webhook_client(scene) as client:
        assert await client.send(event(order.id, "completed")) == 200
        await client.app.sweep.follow_hints()
        assert await client.status(order.id) == "retiring"
        ((due, at),) = await client.rows(
            f"SELECT next_check_at, last_seen_at FROM orders WHERE id = '{order.id}'"
        )
        assert 0 < due - at <= 10_000_000  # microseconds; the longest wait is ten minutes
        scene.lune.move_order(order.id, "complete")
        await asyncio.sleep(max(0.0, due / 1e6 - time.time()))
        await client.app.sweep.follow_hints()
        assert await client.status(order.id) == "complete"
        assert await client.rows(HINTS) == []
        await client.app.collector.run_once()


@fault("W15")
async def test_an_event_of_what_is_known_already_adds_nothing(scene: Scene) -> None:
    order = scene.order("complete")
    async with webhook_client(scene) as client:
        for number, kind in enumerate(("received", "placed", "paid", "retiring", "completed")):
            assert await client.send(event(order.id, kind, number)) == 200
        asked = scene.proxy.count()
        await client.app.sweep.follow_hints()
        assert scene.proxy.count() == asked
        assert await sources(client, order.id) == [("complete", "drain")]
        assert await client.rows("SELECT * FROM anomalies") == []


@fault("W17")
async def test_another_organisation_is_refused_and_our_own_is_not(scene: Scene) -> None:
    order = scene.order("paid")
    async with webhook_client(scene) as client:
        ((own,),) = await client.rows("SELECT DISTINCT organisation_id FROM accounts")
        assert await client.send(event(order.id), organisation="somebody-else") == 401
        assert await client.rows(COUNT) == [(0,)]
        assert await client.send(event(order.id), organisation=own) == 200
        await client.app.sweep.follow_hints()


@fault("W17")
async def test_an_account_that_is_not_followed_asks_for_nothing(scene: Scene) -> None:
    async with webhook_client(scene) as client:
        asked = scene.proxy.count()
        foreign = event("order1", account_id="live-account")
        assert await client.post(body_of(foreign)) == 200
        await client.app.sweep.follow_hints()
        assert (scene.proxy.count(), client.woken) == (asked, 0)
        assert await client.rows(COUNT) == [(1,)]


@fault("W20")
async def test_a_proxy_may_add_headers_and_send_the_body_in_pieces(scene: Scene) -> None:
    body = body_of(event("order1")) + b" \r\n\t"
    proxied = {
        "lune-hmac": f" {header(body)} ",
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "Via": "1.1 proxy",
        "Content-Encoding": "identity",
    }

    async def pieces() -> Any:
        for byte in range(0, len(body), 7):
            yield body[byte : byte + 7]

    async with webhook_client(scene) as client:
        assert (await client.ask(pieces(), proxied))[0] == 200


@fault("W20")
async def test_a_compressed_body_is_refused_before_it_is_read(scene: Scene) -> None:
    body = gzip.compress(body_of(event("order1")))
    for encoding in ("gzip", "br", "deflate", "GZIP"):
        async with webhook_client(scene) as client:
            headers = {"Lune-HMAC": header(body), "Content-Encoding": encoding}
            assert await client.post(body, headers) == 415
