"""Each fault of the sandbox does what the table says, as often as it was asked to."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pypdf
import pytest
from pypdf.errors import PyPdfError

from harvester.sandbox import KINDS, Sandbox, SandboxOptions, parse_fault


class HandClock:
    """Monotonic seconds that move only when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


@pytest.fixture
async def sandbox(hand: HandClock) -> AsyncIterator[Sandbox]:
    options = SandboxOptions(orders=60, client_accounts=1, speed=1, rate_limit=0)
    async with Sandbox(options, monotonic=hand) as running:
        yield running


@pytest.fixture
async def lune(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {sandbox.key}"}
    async with aiohttp.ClientSession(f"{sandbox.base_url}/", headers=headers) as session:
        yield session


async def ask(lune: aiohttp.ClientSession, path: str = "orders", **query: str) -> tuple[int, Any]:
    async with lune.get(path, params=query, allow_redirects=False) as response:
        assert response.headers["CF-Ray"]
        body = await response.read()
        return response.status, json.loads(body) if response.content_type.endswith("json") else body


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 - the server has no event for what it counts
            await asyncio.sleep(0.01)


async def download(sandbox: Sandbox, lune: aiohttp.ClientSession) -> tuple[int, str, bytes]:
    order = sandbox.create_order("complete")
    async with lune.get(f"orders/{order.id}/certificate") as response:
        return response.status, response.content_type, await response.read()


@pytest.mark.parametrize(
    ("text", "spelt_out"),
    [
        ("hang", "hang,share=1"),
        ("slow", "slow=2,share=1"),
        ("slow=0.5,share=0.25,times=3", "slow=0.5,share=0.25,times=3"),
        ("server-errors", "server-errors,share=0.2"),
        ("redirect=http://127.0.0.1:9/a?b=c", "redirect=http://127.0.0.1:9/a?b=c,share=1"),
    ],
)
def test_a_fault_is_read_with_its_defaults(text: str, spelt_out: str) -> None:
    assert str(parse_fault(text)) == spelt_out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nope",
        "slow=soon",
        "slow=-1",
        "slow=inf",
        "hang=3",
        "hang,share=2",
        "hang,share=nan",
        "hang,times=0",
        "hang,times=-1",
        "hang,name=slow",
        "hang,share=1,share=1",
        "server-errors=404",
        "redirect=file:///etc/passwd",
        "not-pdf=nicely",
    ],
)
def test_a_wrongly_written_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_fault(text)


@pytest.mark.parametrize("name", KINDS)
async def test_every_fault_of_the_table_can_be_started_and_ended(name: str) -> None:
    options = SandboxOptions(orders=0, faults=(name,))
    async with Sandbox(options) as sandbox, aiohttp.ClientSession() as session:
        own = sandbox.base_url.replace("/v1", "/_sandbox")
        async with session.get(own) as response:
            assert [fault["name"] for fault in (await response.json())["faults"]] == [name]
        async with session.delete(f"{own}/faults/{name}") as response:
            assert response.status == 204
        async with session.delete(f"{own}/faults/{name}") as response:
            assert response.status == 404


async def test_a_fault_ends_after_its_times(sandbox: Sandbox, lune: aiohttp.ClientSession) -> None:
    sandbox.faults.add("rate-limit,times=2")
    assert [(await ask(lune))[0] for _ in range(4)] == [429, 429, 200, 200]
    assert sandbox.faults.active() == []
    assert sandbox.faults.hits["rate-limit"] == 2


async def test_a_fault_hits_about_its_share(sandbox: Sandbox, lune: aiohttp.ClientSession) -> None:
    sandbox.faults.add("server-errors=503,share=0.3")
    statuses = [(await ask(lune))[0] for _ in range(200)]
    assert set(statuses) == {200, 503}
    assert 30 < statuses.count(503) < 90


async def test_rate_limit_answers_429_with_or_without_retry_after(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    for text, expected in (("rate-limit", None), ("rate-limit=7", "7")):
        sandbox.faults.add(text)
        async with lune.get("orders") as response:
            assert response.status == 429
            assert response.headers.get("Retry-After") == expected


async def test_server_errors_come_without_a_body_or_as_a_web_page(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("server-errors,share=1")
    seen = {await ask(lune) for _ in range(30)}
    assert {status for status, _ in seen} == {500, 502}
    assert all((body == b"") is (status == 500) for status, body in seen)
    assert all(b"<html>" in body for status, body in seen if status == 502)


async def test_slow_answers_late_but_answers(sandbox: Sandbox, lune: aiohttp.ClientSession) -> None:
    sandbox.faults.add("slow=0.2")
    began = asyncio.get_running_loop().time()
    assert (await ask(lune))[0] == 200
    assert asyncio.get_running_loop().time() - began >= 0.19


async def test_hang_never_answers(sandbox: Sandbox, lune: aiohttp.ClientSession) -> None:
    sandbox.faults.add("hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ask(lune)
    sandbox.faults.clear()
    assert (await ask(lune))[0] == 200
    await until(lambda: sandbox.journal.count("GET /orders", 0) == 1)


async def test_stopping_does_not_wait_for_what_hangs(hand: HandClock) -> None:
    options = SandboxOptions(orders=0, faults=("hang",))
    async with Sandbox(options) as sandbox, aiohttp.ClientSession() as session:
        pending = asyncio.create_task(session.get(f"{sandbox.base_url}/orders"))
        await until(lambda: sandbox.faults.hits["hang"] == 1)
        async with asyncio.timeout(5):
            await sandbox.stop()
            (await pending).close()


async def test_reset_cuts_an_answer_in_its_body(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("reset")
    with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
        await ask(lune)
    assert sandbox.faults.hits["reset"] >= 1


async def test_redirect_leads_to_another_host(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("redirect=http://127.0.0.1:9/v1/orders")
    async with lune.get("orders", allow_redirects=False) as response:
        assert response.status == 302
        assert response.headers["Location"] == "http://127.0.0.1:9/v1/orders"


async def test_edge_block_and_not_json_are_web_pages(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    for name, expected in (("edge-block", 403), ("not-json", 200)):
        sandbox.faults.add(name)
        async with lune.get("orders") as response:
            assert (response.status, response.content_type) == (expected, "text/html")
        sandbox.faults.remove(name)


async def test_a_revoked_key_is_refused_everywhere(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("revoked-key")
    for path in ("orders", "accounts/me", "orders/nope"):
        status, body = await ask(lune, path)
        assert (status, body["error"]["error_code"]) == (401, "unauthorised")


async def test_a_suspended_account_is_refused_and_others_are_not(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    client = sandbox.accounts[1]
    sandbox.faults.add(f"suspended-account={client.id}")
    assert (await ask(lune))[0] == 200
    async with lune.get("orders", headers={"Lune-Account": client.id}) as response:
        assert response.status == 403
        assert (await response.json())["error"]["error_code"] == "account_suspended"
    sandbox.faults.add("suspended-account")
    assert (await ask(lune))[0] == 403


async def test_backward_serves_the_status_before_now_and_then(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("backward,share=1")
    order = sandbox.create_order("complete")
    seen = [(await ask(lune, f"orders/{order.id}"))[1]["status"] for _ in range(40)]
    assert set(seen) == {"complete", "retiring"}
    assert sandbox.status(order.id) == "complete"


async def test_a_fault_of_orders_hits_the_same_orders_each_time(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("unknown-status=pooling,share=0.3")
    pages = [(await ask(lune, limit="100"))[1]["data"] for _ in range(3)]
    hit = [{row["id"] for row in rows if row["status"] == "pooling"} for rows in pages]
    assert hit[0] == hit[1] == hit[2]
    assert 0 < len(hit[0]) < len(pages[0])


async def test_a_missing_order_is_listed_but_not_found(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("missing-order,share=1")
    listed = (await ask(lune))[1]["data"][0]["id"]
    assert (await ask(lune, f"orders/{listed}"))[0] == 404


async def test_a_foreign_url_stands_in_the_certificate_property(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("foreign-url=http://169.254.169.254/,share=1")
    _, page = await ask(lune)
    assert {row["certificate"] for row in page["data"]} == {"http://169.254.169.254/"}


async def test_one_order_of_each_page_is_malformed_each_time_in_another_way(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    good = (await ask(lune, limit="9"))[1]["data"]
    sandbox.faults.add("malformed-order")
    broken = []
    for _ in range(18):
        rows = (await ask(lune, limit="9"))[1]["data"]
        assert [row for row in rows if row in good] == good[:4] + good[5:]
        broken.append(json.dumps(rows[4]))
    assert len(set(broken)) == 18


async def test_one_order_of_each_page_has_a_hostile_id(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    known = {order.id for order in sandbox.orders()}
    sandbox.faults.add("hostile-ids")
    ids = [(await ask(lune))[1]["data"][-1]["id"] for _ in range(16)]
    assert known.isdisjoint(ids)
    assert len(set(ids)) == 16
    assert ".." in ids


async def test_null_cursor_promises_more_without_saying_where(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("null-cursor")
    _, page = await ask(lune, limit="100")
    assert (page["has_more"], page["next_cursor"]) == (True, None)


async def test_repeat_cursor_leads_round_in_a_circle(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("repeat-cursor")
    _, first = await ask(lune, limit="100")
    _, second = await ask(lune, limit="100", after=first["next_cursor"])
    assert (second["has_more"], second["next_cursor"]) == (True, first["next_cursor"])


async def test_strict_cursor_refuses_an_orders_id_that_is_a_cursor_otherwise(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    _, first = await ask(lune, limit="1")
    after_id = {"limit": "1", "after": first["data"][0]["id"]}
    _, second = await ask(lune, limit="1", after=first["next_cursor"])
    assert await ask(lune, **after_id) == (200, second)
    sandbox.faults.add("strict-cursor")
    assert (await ask(lune, **after_id))[0] == 400
    assert (await ask(lune, limit="1", after=first["next_cursor"]))[0] == 200


async def test_truncate_ends_before_the_content_length(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("truncate,times=1")
    with pytest.raises(aiohttp.ClientPayloadError):
        await download(sandbox, lune)
    status, _, body = await download(sandbox, lune)
    assert (status, body[:5]) == (200, b"%PDF-")


async def test_html_certificate_is_a_web_page(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    sandbox.faults.add("html-certificate")
    assert (await download(sandbox, lune))[:2] == (200, "text/html")


@pytest.mark.parametrize("how", ["junk", "cut", "empty"])
async def test_not_pdf_has_the_type_but_not_the_bytes(
    sandbox: Sandbox, lune: aiohttp.ClientSession, how: str
) -> None:
    sandbox.faults.add(f"not-pdf={how}")
    status, content_type, body = await download(sandbox, lune)
    assert (status, content_type) == (200, "application/pdf")
    with pytest.raises(PyPdfError):
        pypdf.PdfReader(io.BytesIO(body), strict=True)


async def test_a_missing_certificate_comes_after_its_simulated_seconds(
    sandbox: Sandbox, lune: aiohttp.ClientSession, hand: HandClock
) -> None:
    order = sandbox.create_order("complete")
    path = f"orders/{order.id}/certificate"
    sandbox.faults.add("certificate-missing=3600")
    assert (await ask(lune, path))[0] == 404
    hand.seconds += 3599
    assert (await ask(lune, path))[0] == 404
    hand.seconds += 1
    assert (await ask(lune, path))[0] == 200
    sandbox.faults.add("certificate-missing")
    hand.seconds += 10**8
    assert (await ask(lune, path))[0] == 404


async def test_a_changing_certificate_is_a_good_pdf_each_time(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    order = sandbox.create_order("complete")
    sandbox.faults.add("certificate-changes")
    copies = {(await ask(lune, f"orders/{order.id}/certificate"))[1] for _ in range(3)}
    assert len(copies) == 3
    for pdf in copies:
        assert (
            "credits retired"
            in pypdf.PdfReader(io.BytesIO(pdf), strict=True).pages[0].extract_text()
        )


async def test_faults_and_clock_are_changed_while_it_runs(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    own = sandbox.base_url.replace("/v1", "/_sandbox")
    body = {"name": "rate-limit", "arg": "3", "times": 1}
    async with lune.post(f"{own}/faults", json=body) as response:
        assert await response.json() == {
            "name": "rate-limit",
            "arg": "3",
            "share": 1.0,
            "times": 1,
            "hits": 0,
        }
    assert [(await ask(lune))[0] for _ in range(2)] == [429, 200]
    before = sandbox.clock.now()
    async with lune.post(f"{own}/clock", json={"advance": 60}) as response:
        assert response.status == 200
    assert sandbox.clock.now() - before == 60
    async with lune.get(own) as response:
        state = await response.json()
    assert state["requests"] == {"GET /orders": {"200": 1, "429": 1}}
    assert state["clock"]["speed"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", b"nonsense"),
        ("faults", b"[]"),
        ("faults", b'{"name": "nope"}'),
        ("faults", b'{"name": "slow", "arg": "soon"}'),
        ("faults", b'{"name": ["slow"]}'),
        ("clock", b'{"advance": -1}'),
        ("clock", b'{"advance": NaN}'),
        ("clock", b'{"advance": "1"}'),
    ],
)
async def test_a_wrong_change_is_refused_with_the_rule(
    sandbox: Sandbox, lune: aiohttp.ClientSession, path: str, body: bytes
) -> None:
    own = sandbox.base_url.replace("/v1", "/_sandbox")
    async with lune.post(f"{own}/{path}", data=body) as response:
        assert response.status == 400
        assert await response.text()
