"""Buying on real parts: at most once, whatever is cut off in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from pathlib import Path

import pytest

from harvester.domain import errors
from harvester.domain.errors import KeyTaken, OutcomeUnknown
from harvester.domain.purchases import by_mass, by_value
from harvester.harvest.purchase import Placed
from harvester.ledger import migrate
from harvester.ledger.accounts import record_accounts
from harvester.ledger.database import Database
from harvester.lune import ClientOptions, Deadlines, LuneClient, RateLimiter
from tests.integration.buyer import MASS, Buyer
from tests.integration.order_desk import CLIENT, KEY, MESSAGE, OWN, OrderDesk, Turn, refusing
from tests.integration.raw_server import Naps

LOST = [
    Turn(silence="hang"),
    Turn(silence="drop"),
    Turn(status=500),
    Turn(status=502),
    Turn(status=403),
    Turn(status=408),
    Turn(body='{"id": "Order1"}'),
    Turn(body="not JSON"),
]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    migrate.upgrade(path)
    return path


@pytest.fixture
async def desk() -> AsyncIterator[OrderDesk]:
    async with OrderDesk().serving() as one:
        yield one


@pytest.fixture
async def buyer(desk: OrderDesk, empty: Path, tmp_path: Path) -> AsyncIterator[Buyer]:
    path = tmp_path / "ledger.db"
    path.write_bytes(empty.read_bytes())
    database, naps = Database(path), Naps()
    options = ClientOptions(Deadlines(connect=0.3, read=0.3, total=1.0), sleep=Naps())
    client = LuneClient(desk.base_url, lambda: KEY, RateLimiter(1000), options)
    async with client as lune:
        one = Buyer(desk, lune, database, path, naps)
        own, other = await lune.fetch_own_account(), await lune.fetch_account(CLIENT)
        await record_accounts(database, [own, other], one.at)
        yield one
    await database.close()


async def test_an_order_is_placed_recorded_and_followed(buyer: Buyer) -> None:
    placed = await buyer.buy()
    assert placed == Placed(OWN, "Order1", "received", existed=False)
    assert buyer.desk.posts() == [{**MASS.request, "idempotency_key": "K"}]
    (found,) = await buyer.rows()
    assert (found.order.account_id, found.order.status) == (OWN, "received")
    assert found.order.next_check_at is not None
    assert [(step.after, step.source) for step in found.transitions] == [("received", "track")]
    assert buyer.written() == [("K", "Order1", None)]
    assert (buyer.naps, buyer.desk.lookups()) == ([], 0)


async def test_the_purchase_is_in_the_ledger_before_the_order_is_sent(buyer: Buyer) -> None:
    seen: list[object] = []

    async def read() -> None:
        seen.extend(buyer.written())

    buyer.desk.on_order = read
    await buyer.buy()
    assert seen == [("K", None, None)]


@pytest.mark.parametrize("turn", LOST, ids=lambda turn: turn.silence or turn.body or turn.status)
async def test_an_order_whose_answer_was_lost_is_found_by_its_key(buyer: Buyer, turn: Turn) -> None:
    buyer.desk.turns.append(turn)
    placed = await buyer.buy()
    assert placed == Placed(OWN, "Order1", "received", existed=False)
    assert len(buyer.desk.posts()) == 1
    assert buyer.naps == [1.0]
    assert len(await buyer.rows()) == 1
    assert buyer.written() == [("K", "Order1", None)]


async def test_an_order_lune_is_still_at_is_asked_for_thrice(buyer: Buyer) -> None:
    buyer.desk.turns.append(Turn(silence="drop"))
    buyer.desk.key_turns.extend([404, 404])
    assert (await buyer.buy()).order_id == "Order1"
    assert buyer.naps == [1.0, 3.0, 6.0]
    assert len(buyer.desk.posts()) == 1


async def test_faults_while_asking_by_key_are_lived_through(buyer: Buyer) -> None:
    buyer.desk.turns.append(Turn(status=500))
    buyer.desk.key_turns.extend([500, 500, 500, 500, 403, 200])
    assert (await buyer.buy()).order_id == "Order1"
    assert len(buyer.desk.posts()) == 1


@pytest.mark.parametrize(
    "turn",
    [
        Turn(takes=False, silence="hang"),
        Turn(takes=False, silence="drop"),
        Turn(takes=False, status=500),
        Turn(takes=False, body="{}"),
    ],
    ids=lambda turn: turn.silence or turn.body or turn.status,
)
async def test_what_nobody_knows_is_left_open_and_the_next_call_places_it_once(
    buyer: Buyer, turn: Turn
) -> None:
    buyer.desk.turns.append(turn)
    with pytest.raises(OutcomeUnknown, match="--idempotency-key K"):
        await buyer.buy()
    assert buyer.naps == [1.0, 3.0, 6.0]
    assert await buyer.open_keys() == ["K"]
    assert await buyer.rows() == []
    placed = await buyer.buy()
    assert placed == Placed(OWN, "Order1", "received", existed=False)
    assert [post["idempotency_key"] for post in buyer.desk.posts()] == ["K", "K"]
    assert len(buyer.desk.orders) == len(await buyer.rows()) == 1
    assert buyer.written() == [("K", "Order1", None)]


async def test_an_order_taken_in_silence_is_found_by_the_next_call_and_not_sent_again(
    buyer: Buyer,
) -> None:
    buyer.desk.turns.append(Turn(silence="drop"))
    buyer.desk.key_turns.extend([404, 404, 404])
    with pytest.raises(OutcomeUnknown):
        await buyer.buy()
    assert await buyer.open_keys() == ["K"]
    assert await buyer.buy() == Placed(OWN, "Order1", "received", existed=True)
    assert len(buyer.desk.posts()) == 1
    assert await buyer.open_keys() == []


async def test_while_its_key_cannot_be_asked_for_an_open_order_is_not_sent_again(
    buyer: Buyer,
) -> None:
    await buyer.leave_open()
    buyer.desk.key_turns.extend([500] * 4)
    with pytest.raises(errors.ServerFault):
        await buyer.buy()
    assert buyer.desk.posts() == []
    assert await buyer.open_keys() == ["K"]


async def test_an_order_that_was_cancelled_in_flight_stays_open_and_is_settled_by_key(
    buyer: Buyer,
) -> None:
    buyer.desk.turns.append(Turn(silence="hang"))
    sent = asyncio.Event()

    async def tell() -> None:
        sent.set()

    buyer.desk.on_order = tell
    buying = asyncio.create_task(buyer.buy())
    async with asyncio.timeout(10):
        await sent.wait()
        while not buyer.desk.orders:  # noqa: ASYNC110 - tell() comes before the order is kept
            await asyncio.sleep(0)
    buying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await buying
    assert await buyer.open_keys() == ["K"]
    assert await buyer.purchaser.settle_open() == 1
    assert len(buyer.desk.posts()) == len(await buyer.rows()) == 1


async def test_a_key_that_lune_knows_is_ours_and_followed(buyer: Buyer) -> None:
    buyer.desk.take("K", mass={"amount": "259.11", "unit": "kg"})
    assert await buyer.buy() == Placed(OWN, "Order1", "received", existed=True)
    assert len(buyer.desk.posts()) == 1
    assert len(await buyer.rows()) == 1
    assert buyer.written() == [("K", "Order1", None)]


async def test_a_known_key_whose_order_cannot_be_fetched_is_left_open(buyer: Buyer) -> None:
    buyer.desk.take("K")
    buyer.desk.key_turns.extend([500] * 4)
    with pytest.raises(errors.LuneError):
        await buyer.buy()
    assert await buyer.open_keys() == ["K"]
    assert (await buyer.buy()).existed
    assert len(buyer.desk.orders) == 1


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (refusing(400, "order_value_invalid"), errors.RequestRefused),
        (refusing(400, "bundle_selection_ratios_invalid"), errors.RequestRefused),
        (refusing(402, "insufficient_credits"), errors.RequestRefused),
        (refusing(409, "something_new"), errors.RequestRefused),
        (refusing(403, "account_suspended"), errors.AccountRefused),
        (refusing(404, None), errors.NotFound),
        (refusing(307, None), errors.Redirected),
    ],
    ids=lambda value: getattr(value, "code", None) or "",
)
async def test_a_refusal_is_raised_as_it_is_and_leaves_nothing_behind(
    buyer: Buyer, turn: Turn, error: type[errors.LuneError]
) -> None:
    buyer.desk.turns.append(turn)
    with pytest.raises(error) as caught:
        await buyer.buy()
    assert caught.value.code == turn.code
    assert turn.code is None or MESSAGE in str(caught.value)
    assert await buyer.rows() == []
    assert await buyer.open_keys() == []
    ((_, order_id, refusal),) = buyer.written()
    assert order_id is None
    assert refusal == str(caught.value)
    assert (buyer.naps, buyer.desk.lookups()) == ([], 0)
    assert await buyer.buy() == Placed(OWN, "Order1", "received", existed=False)
    assert buyer.written() == [("K", "Order1", None)]


async def test_a_refused_key_of_the_api_leaves_nothing_open(buyer: Buyer) -> None:
    buyer.desk.turns.append(refusing(401, "unauthorised"))
    with pytest.raises(errors.KeyRefused):
        await buyer.buy()
    assert await buyer.open_keys() == []
    await buyer.lune.probe()
    assert not (await buyer.buy()).existed


async def test_after_a_refusal_the_key_may_buy_something_else(buyer: Buyer) -> None:
    buyer.desk.turns.append(refusing(400, "order_value_invalid"))
    with pytest.raises(errors.RequestRefused):
        await buyer.buy(by_value("0.01"))
    assert (await buyer.buy(by_value("5"))).order_id == "Order1"


@pytest.mark.parametrize("settled", [True, False])
async def test_a_key_of_another_purchase_is_refused_and_nothing_is_asked(
    buyer: Buyer, settled: bool
) -> None:
    if settled:
        await buyer.buy()
    else:
        await buyer.leave_open()
    before = len(buyer.desk.asked)
    for other in (by_value("5"), by_mass("259.12", "kg"), by_mass("259.11", "kg")):
        with pytest.raises(KeyTaken, match="'K' was used for another purchase"):
            await buyer.buy(other)
    assert len(buyer.desk.asked) == before


async def test_the_same_key_in_another_account_is_another_order(buyer: Buyer) -> None:
    assert (await buyer.buy()).order_id == "Order1"
    assert (await buyer.buy(account=CLIENT)) == Placed(CLIENT, "Order2", "received", existed=False)
    assert {found.order.account_id for found in await buyer.rows()} == {OWN, CLIENT}


async def test_buying_again_with_the_same_key_gives_the_order_as_it_is_by_now(
    buyer: Buyer,
) -> None:
    await buyer.buy()
    buyer.desk.orders[OWN, "K"]["status"] = "paid"
    assert await buyer.buy() == Placed(OWN, "Order1", "paid", existed=True)
    assert len(buyer.desk.posts()) == 1
    (found,) = await buyer.rows()
    assert [step.after for step in found.transitions] == ["received", "paid"]


async def test_a_key_that_became_an_order_is_never_sent_again(buyer: Buyer) -> None:
    """The ledger knows the order, even where Lune does not find it by its key any more."""
    await buyer.buy()
    buyer.desk.key_turns.extend([404] * 8)
    try:
        placed = await buyer.buy()
    except errors.LuneError:
        placed = None  # to say that it cannot be found is right too
    assert len(buyer.desk.posts()) == 1
    assert placed is None or placed.order_id == "Order1"


async def test_the_same_purchase_twice_at_once_is_one_order(buyer: Buyer) -> None:
    placed = await asyncio.gather(*(buyer.buy() for _ in range(4)))
    assert {one.order_id for one in placed} == {"Order1"}
    assert len(buyer.desk.orders) == len(await buyer.rows()) == 1
    assert await buyer.open_keys() == []


async def test_open_purchases_are_settled_by_asking_and_never_by_sending(buyer: Buyer) -> None:
    for key in ("taken", "lost"):
        await buyer.leave_open(key)
    await buyer.leave_open("other", CLIENT)
    buyer.desk.take("taken")
    buyer.desk.take("other", CLIENT)
    assert await buyer.purchaser.settle_open() == 2
    assert await buyer.open_keys() == ["lost"]
    assert buyer.desk.posts() == []
    (found,) = await buyer.rows("other")
    assert found.order.account_id == CLIENT
    assert {step.source for step in found.transitions} == {"track"}


async def test_nothing_open_asks_lune_for_nothing(buyer: Buyer) -> None:
    await buyer.buy()
    before = len(buyer.desk.asked)
    assert await buyer.purchaser.settle_open() == 0
    assert len(buyer.desk.asked) == before


async def test_an_order_that_lune_does_not_know_is_given_up_after_a_day_and_not_before(
    buyer: Buyer,
) -> None:
    await buyer.leave_open()
    buyer.at += timedelta(days=1)
    assert await buyer.purchaser.settle_open() == 0
    assert await buyer.open_keys() == ["K"]
    buyer.at += timedelta(seconds=1)
    assert await buyer.purchaser.settle_open() == 1
    assert buyer.written() == [("K", None, "Lune never knew of it")]
    assert await buyer.rows() == []
    assert buyer.desk.posts() == []
    assert not (await buyer.buy()).existed


@pytest.mark.parametrize("status", [500, 403])
async def test_nothing_is_given_up_while_its_key_cannot_be_asked_for(
    buyer: Buyer, status: int
) -> None:
    await buyer.leave_open()
    buyer.at += timedelta(days=30)
    buyer.desk.key_turns.extend([status] * 4)
    await _quietly(buyer.purchaser.settle_open())
    assert await buyer.open_keys() == ["K"]


@pytest.mark.parametrize("status", [500, 403])
async def test_a_purchase_that_cannot_be_asked_about_does_not_keep_the_others_open(
    buyer: Buyer, status: int
) -> None:
    await buyer.leave_open("first")
    buyer.at += timedelta(seconds=1)
    await buyer.leave_open("second")
    buyer.desk.take("second")
    buyer.desk.key_turns.extend([status] * (4 if status == 500 else 1))
    await _quietly(buyer.purchaser.settle_open())
    assert await buyer.open_keys() == ["first"]


async def _quietly(settling: Awaitable[int]) -> None:
    """Let it raise what it could not ask; what became of the ledger is what counts."""
    try:
        await settling
    except errors.LuneError:
        return
