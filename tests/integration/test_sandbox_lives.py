"""Orders of the sandbox move with its clock, and their certificates with them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal

import aiohttp
import pypdf
import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from harvester.sandbox.pdf import Line, one_page
from harvester.sandbox.pricing import Purchase

FORWARD = ["received", "placed", "paid", "retiring", "complete"]
STARTS_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = 86_400


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
    options = SandboxOptions(orders=0, speed=60, rate_limit=0, starts_at=STARTS_AT)
    async with Sandbox(options, monotonic=hand) as running:
        yield running


@pytest.fixture
async def lune(sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {sandbox.key}"}
    async with aiohttp.ClientSession(f"{sandbox.base_url}/", headers=headers) as session:
        yield session


async def download(lune: aiohttp.ClientSession, order_id: str) -> bytes | None:
    async with lune.get(f"orders/{order_id}/certificate") as response:
        body = await response.read()
        if response.status == 404:
            assert body == b""
            return None
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/pdf"
        assert response.headers["Content-Length"] == str(len(body))
        return body


def read(pdf: bytes | None) -> str:
    assert pdf is not None
    reader = pypdf.PdfReader(io.BytesIO(pdf), strict=True)
    assert len(reader.pages) == 1
    return reader.pages[0].extract_text()


def test_the_clock_runs_faster_by_its_speed(hand: HandClock) -> None:
    sandbox = Sandbox(SandboxOptions(orders=0, speed=100, starts_at=STARTS_AT), monotonic=hand)
    began = sandbox.clock.now()
    assert began == STARTS_AT.timestamp()
    hand.seconds += 2.5
    assert sandbox.clock.now() - began == 250
    sandbox.clock.advance(50)
    assert sandbox.clock.now() - began == 300


async def test_an_order_moves_only_forward_as_time_passes(
    sandbox: Sandbox, lune: aiohttp.ClientSession, hand: HandClock
) -> None:
    body = {"mass": {"amount": "1", "unit": "t"}}
    ids = []
    for _ in range(20):
        async with lune.post("orders/by-mass", json=body) as response:
            order = await response.json()
            ids.append(order["id"])
            assert (order["status"], order["created_at"]) == (
                "received",
                "2026-03-01T12:00:00.000Z",
            )
    seen: dict[str, list[str]] = {order_id: ["received"] for order_id in ids}
    while not all(
        statuses[-1] in ("complete", "cancelled", "failed") for statuses in seen.values()
    ):
        async with lune.get("orders", params={"limit": "100"}) as response:
            for row in (await response.json())["data"]:
                if seen[row["id"]][-1] != row["status"]:
                    seen[row["id"]].append(row["status"])
        hand.seconds += 1
        assert hand.seconds < 400 * DAY / 60
        if all(statuses[-1] != "received" for statuses in seen.values()):
            hand.seconds += DAY / 4 / 60
    paths = Counter(tuple(statuses) for statuses in seen.values())
    assert paths[tuple(FORWARD)] >= 15
    legal = {
        tuple(FORWARD),
        ("received", "failed"),
        ("received", "cancelled"),
        ("received", "placed", "cancelled"),
    }
    assert set(paths) <= legal


def test_lives_take_minutes_then_days_then_weeks_and_a_few_end_early(hand: HandClock) -> None:
    sandbox = Sandbox(SandboxOptions(orders=0, starts_at=STARTS_AT), monotonic=hand)
    lives = [order.life for order in (sandbox.create_order("received") for _ in range(400))]
    complete = [life for life in lives if life.path[-1] == "complete"]
    medians = [
        sorted(life.starts[step + 1] - life.starts[step] for life in complete)[len(complete) // 2]
        for step in range(4)
    ]
    assert 120 < medians[0] < 900
    assert DAY < medians[1] < 4 * DAY
    assert 3 * DAY < medians[2] < 10 * DAY
    assert 14 * DAY < medians[3] < 30 * DAY


def test_some_orders_fail_and_some_are_cancelled() -> None:
    sandbox = Sandbox(SandboxOptions(orders=0, speed=0))
    account = sandbox.accounts[0]
    ends = Counter(
        sandbox._world.place_order(account, Purchase(Decimal(1))).life.path for _ in range(2000)
    )
    assert set(ends) == {
        tuple(FORWARD),
        ("received", "failed"),
        ("received", "cancelled"),
        ("received", "placed", "cancelled"),
    }
    assert ends[tuple(FORWARD)] > 1800


@pytest.mark.parametrize("status", [*FORWARD, "cancelled", "failed"])
def test_an_order_is_created_in_any_status_and_held_there(
    sandbox: Sandbox, hand: HandClock, status: str
) -> None:
    order = sandbox.create_order(status, hold=True, metadata={"for": "a test"})
    assert sandbox.status(order.id) == status
    hand.seconds += 1000 * DAY
    assert sandbox.status(order.id) == status
    assert sandbox.document(order.id)["metadata"] == {"for": "a test"}


def test_an_order_that_is_not_held_lives_on(sandbox: Sandbox, hand: HandClock) -> None:
    order = sandbox.create_order("retiring")
    assert sandbox.status(order.id) == "retiring"
    hand.seconds += 365 * DAY
    assert sandbox.status(order.id) == "complete"


def test_an_order_is_moved_by_hand_and_stays(sandbox: Sandbox, hand: HandClock) -> None:
    order = sandbox.create_order("received")
    sandbox.move_order(order.id, "paid")
    hand.seconds += 365 * DAY
    assert sandbox.status(order.id) == "paid"
    with pytest.raises(KeyError):
        sandbox.move_order("nope", "paid")
    with pytest.raises(ValueError, match="status is one of"):
        sandbox.create_order("shipped")


async def test_there_is_no_certificate_before_retiring(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    for status in ("received", "placed", "paid", "cancelled", "failed"):
        order = sandbox.create_order(status, hold=True)
        assert await download(lune, order.id) is None
        assert sandbox.certificate(order.id) is None


async def test_a_certificate_is_a_whole_pdf_that_says_what_was_retired(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    order = sandbox.create_order("complete", tonnes="1.25")
    pdf = await download(lune, order.id)
    assert pdf is not None
    assert pdf.startswith(b"%PDF-1.4\n")
    assert pdf.endswith(b"%%EOF\n")
    lines = read(pdf).splitlines()
    assert "Carbon credit certificate" in lines
    assert "1.25 credits retired on behalf of Acme Logistics" in lines
    assert "Last updated 1 Mar, 2026" in lines
    assert f"Order {order.id}" in lines
    assert "Beneficiary: Acme Logistics" in lines
    assert "0.68875 tCO2, Rimba Raya, Verra: Retired" in lines
    assert sum("tCO2" in line for line in lines) == 4


async def test_a_certificate_is_issued_while_retiring_and_changed_at_completion(
    sandbox: Sandbox, lune: aiohttp.ClientSession
) -> None:
    order = sandbox.create_order("retiring", hold=True)
    early = await download(lune, order.id)
    assert "Allocated, pending retirement" in read(early)
    assert sandbox.document(order.id)["certificate"] is None
    sandbox.move_order(order.id, "complete")
    final = await download(lune, order.id)
    assert final != early
    assert "Allocated" not in read(final)
    assert sandbox.document(order.id)["certificate"] == (
        f"{sandbox.base_url}/orders/{order.id}/certificate"
    )


async def test_two_downloads_in_one_state_are_equal(
    sandbox: Sandbox, lune: aiohttp.ClientSession, hand: HandClock
) -> None:
    order = sandbox.create_order("retiring", hold=True)
    first = await download(lune, order.id)
    hand.seconds += 30 * DAY / 60
    assert await download(lune, order.id) == first == sandbox.certificate(order.id)


async def test_a_certificate_may_be_had_at_completion_only() -> None:
    sandbox = Sandbox(SandboxOptions(orders=0, speed=0, certificate_at="complete"))
    order = sandbox.create_order("retiring", hold=True)
    assert sandbox.certificate(order.id) is None
    sandbox.move_order(order.id, "complete")
    assert sandbox.certificate(order.id) is not None


async def test_an_account_without_a_beneficiary_retires_for_its_organisation() -> None:
    sandbox = Sandbox(SandboxOptions(orders=0, speed=0, client_accounts=5))
    account = next(account for account in sandbox.accounts if account.beneficiary is None)
    order = sandbox.create_order("complete", account_id=account.id)
    assert "on behalf of Acme Holding Ltd" in read(sandbox.certificate(order.id))


async def test_accents_of_a_beneficiary_survive() -> None:
    sandbox = Sandbox(SandboxOptions(orders=0, speed=0, client_accounts=3))
    names = [account.beneficiary for account in sandbox.accounts[1:]]
    for account in sandbox.accounts[1:]:
        order = sandbox.create_order("complete", account_id=account.id)
        assert f"Beneficiary: {account.beneficiary}" in read(sandbox.certificate(order.id))
    assert any(name and not name.isascii() for name in names)


def test_hostile_text_makes_no_broken_pdf() -> None:
    texts = ["back\\slash (and) ((parentheses)", "日本語 and €", "line\nbreak", ") Tj ET"]
    pdf = one_page([Line(text) for text in texts] + [Line("below")] * 200, title="(")
    shown = read(pdf)
    assert "back\\slash (and) ((parentheses)" in shown
    assert "??? and €" in shown
    assert "line break" in shown
    assert ") Tj ET" in shown
