"""The accounts and orders a sandbox starts with."""

from __future__ import annotations

import random
from decimal import Decimal
from itertools import cycle, islice

from harvester.sandbox.lives import (
    CANCELLED,
    COMPLETE,
    FAILED,
    PAID,
    PLACED,
    RECEIVED,
    RETIRING,
    Life,
    draw_life_in,
)
from harvester.sandbox.options import SandboxOptions
from harvester.sandbox.pricing import Purchase
from harvester.sandbox.world import CLIENT_SCOPE, Account, Order, World, new_id

_STATUSES = (
    (COMPLETE, RETIRING, PAID, PLACED, RECEIVED, CANCELLED, FAILED)
    + (COMPLETE,) * 6
    + (RETIRING,) * 3
    + (PAID,) * 2
    + (PLACED,) * 2
)
"""Dealt out in turn: seven orders already show every status."""

_OWN = ("Acme Logistics", "Acme Iberia", "Acme Nordics", "Acme Benelux")
_CLIENTS = ("Fjord Café", "Blue Parcel", "Søren & Sons", "Orchard Foods", "Peak Cycles")
_CURRENCIES = ("GBP", "EUR", "USD", "SEK")
_PAYMENT_METHODS = ("invoice", "invoice", "invoice", "card", None)


def create_accounts(world: World, options: SandboxOptions, rng: random.Random) -> None:
    """Give the world pairs of live and test accounts, and client accounts of the key's mode."""
    other = "live" if options.mode == "test" else "test"
    for index in range(options.accounts):
        own_id, sibling_id = new_id(rng), new_id(rng)
        world.add_account(_account(index, own_id, options.mode, sibling_id))
        world.add_account(_account(index, sibling_id, other, own_id))
    for index in range(options.client_accounts):
        name = _name(_CLIENTS, index, "Client")
        world.add_account(
            Account(
                id=new_id(rng),
                name=name,
                handle=f"client-{index + 1}",
                mode=options.mode,
                scope=CLIENT_SCOPE,
                currency=_CURRENCIES[index % len(_CURRENCIES)],
                beneficiary=None if index % 5 == 4 else name,
                sibling_id=None,
                is_public=index % 2 == 0,
            )
        )


def create_orders(world: World, count: int, rng: random.Random) -> None:
    """Give the world's own accounts orders that were received in the simulated past."""
    accounts = world.own_accounts()
    statuses = list(islice(cycle(_STATUSES), count))
    rng.shuffle(statuses)
    now = world.clock.now()
    orders = []
    for dealt, status in enumerate(statuses):
        turn, seat = divmod(dealt, len(accounts))
        orders.append(_order(rng, dealt, turn, accounts[seat].id, draw_life_in(rng, status, now)))
    orders.sort(key=lambda order: order.created_at)
    for number, order in enumerate(orders):
        order.number = number
    world.add_orders(orders)


def _account(index: int, account_id: str, mode: str, sibling_id: str) -> Account:
    name = _name(_OWN, index, "Acme")
    return Account(
        id=account_id,
        name=name,
        handle=name.lower().replace(" ", "-"),
        mode=mode,
        scope="account",
        currency=_CURRENCIES[index % len(_CURRENCIES)],
        beneficiary=name,
        sibling_id=sibling_id,
        is_public=False,
    )


def _name(names: tuple[str, ...], index: int, stem: str) -> str:
    return names[index] if index < len(names) else f"{stem} {index + 1}"


def _order(rng: random.Random, dealt: int, turn: int, account_id: str, life: Life) -> Order:
    invoice = f"INV-{1000 + dealt}"
    order = Order(
        id=new_id(rng),
        number=dealt,
        account_id=account_id,
        created_at=life.starts[0],
        purchase=_purchase(rng, turn),
        life=life,
        idempotency_key=None if turn % 5 == 4 else invoice,
        metadata={"invoice": invoice} if turn % 2 == 0 else {},
        payment_method=_PAYMENT_METHODS[turn % len(_PAYMENT_METHODS)],
    )
    if turn % 4 == 1:
        order.estimate_id = new_id(rng)
    if turn % 17 == 16:
        order.offset_link_id = f"{turn % 3}{account_id[1:]}"
        order.email = f"customer{dealt}@example.com"
    return order


def _purchase(rng: random.Random, turn: int) -> Purchase:
    if turn % 4 == 3:
        return Purchase(value=Decimal(rng.randint(50, 500_000)).scaleb(-2))
    grams = int(rng.lognormvariate(0, 1.5) * 1_000_000)
    return Purchase(tonnes=Decimal(max(grams, 1_000)).scaleb(-6))
