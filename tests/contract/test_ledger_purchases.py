"""What any ledger must do: purchases written down before money is spent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harvester.domain.purchases import BundleShare, Purchase, by_estimate, by_mass, by_value
from harvester.ledger.purchases import (
    RecordedPurchase,
    record_purchase,
    settle_purchase,
    unsettled_purchases,
)
from tests.contract.ledger_cases import ACCOUNT, CLIENT, DAY, HOUR, NOW, Kept

KILO = by_mass("259.110", "kg", metadata={"customer": "Zoë\n'; --"})


async def record(kept: Kept, key: str = "K", purchase: Purchase = KILO, **more: Any) -> Any:
    at, account = more.get("at", NOW), more.get("account", ACCOUNT)
    return await record_purchase(kept.database, account.id, key, purchase, at)


async def settle(kept: Kept, key: str = "K", **more: Any) -> None:
    await settle_purchase(kept.database, ACCOUNT.id, key, more.pop("at", NOW + HOUR), **more)


async def unsettled(kept: Kept) -> list[tuple[str, str]]:
    found = await unsettled_purchases(kept.database)
    return [(one.account_id, one.idempotency_key) for one in found]


async def test_a_new_purchase_is_written_down_and_unsettled(kept: Kept) -> None:
    assert await record(kept) is None
    (one,) = await unsettled_purchases(kept.database)
    assert one == RecordedPurchase("acct", "K", KILO, NOW, None, None)


@pytest.mark.parametrize(
    "purchase",
    [
        KILO,
        by_value("0.10", [BundleShare("Asia1", None), BundleShare("Ocean2", None)]),
        by_estimate("90ng23MKvLqbkpMwMw7yMBD4wJQrV6O6", metadata={"ö": ""}),
    ],
    ids=lambda purchase: purchase.kind,
)
async def test_what_was_to_be_bought_is_given_back_as_it_was(
    kept: Kept, purchase: Purchase
) -> None:
    await record(kept, purchase=purchase)
    (one,) = await unsettled_purchases(kept.database)
    assert one.purchase == purchase


async def test_a_key_used_before_gives_what_was_written_then_which_stays(kept: Kept) -> None:
    await record(kept)
    again = await record(kept, purchase=by_value("5"), at=NOW + HOUR)
    assert again == RecordedPurchase("acct", "K", KILO, NOW, None, None)
    (one,) = await unsettled_purchases(kept.database)
    assert one == again


async def test_a_purchase_that_became_an_order_is_settled_and_keeps_its_key(kept: Kept) -> None:
    await record(kept)
    await settle(kept, order_id="o1")
    assert await unsettled(kept) == []
    again = await record(kept, purchase=by_value("5"), at=NOW + DAY)
    assert (again.purchase, again.order_id, again.refusal) == (KILO, "o1", None)
    assert again.order_id is not None


async def test_a_refused_purchase_is_settled_and_its_key_is_free_again(kept: Kept) -> None:
    await record(kept)
    await settle(kept, refusal="insufficient_credits")
    assert await unsettled(kept) == []
    other = by_value("5")
    assert await record(kept, purchase=other, at=NOW + DAY) is None
    (one,) = await unsettled_purchases(kept.database)
    assert one == RecordedPurchase("acct", "K", other, NOW + DAY, None, None)


async def test_a_refusal_after_the_order_is_known_changes_nothing(kept: Kept) -> None:
    await record(kept)
    await settle(kept, order_id="o1")
    await settle(kept, refusal="too late")
    again = await record(kept)
    assert (again.order_id, again.refusal) == ("o1", None)


async def test_an_order_that_is_known_after_all_replaces_the_refusal(kept: Kept) -> None:
    await record(kept)
    await settle(kept, refusal="Lune never knew of it")
    await settle(kept, order_id="o1")
    again = await record(kept)
    assert (again.order_id, again.refusal) == ("o1", None)


async def test_settling_twice_the_same_way_is_settling_once(kept: Kept) -> None:
    await record(kept)
    for _ in range(2):
        await settle(kept, order_id="o1")
    assert (await record(kept)).order_id == "o1"


async def test_settling_what_was_never_recorded_does_nothing(kept: Kept) -> None:
    await settle(kept, order_id="o1")
    assert await unsettled(kept) == []
    assert await record(kept) is None


async def test_a_key_belongs_to_one_account(kept: Kept) -> None:
    assert await record(kept) is None
    assert await record(kept, purchase=by_value("5"), account=CLIENT) is None
    await settle(kept, order_id="o1")
    assert await unsettled(kept) == [("client", "K")]


async def test_unsettled_purchases_come_oldest_first(kept: Kept) -> None:
    for hours, key in ((3, "third"), (1, "first"), (2, "second")):
        await record(kept, key, at=NOW + hours * HOUR)
    assert [key for _, key in await unsettled(kept)] == ["first", "second", "third"]


async def test_of_many_who_buy_the_same_at_once_one_is_first(kept: Kept) -> None:
    answers = await asyncio.gather(*(record(kept, at=NOW + n * HOUR) for n in range(8)))
    assert answers.count(None) == 1
    assert len({one.recorded_at for one in answers if one is not None}) == 1
    assert await unsettled(kept) == [("acct", "K")]
