"""The accounts and orders of a sandbox, and how they are found and listed."""

from __future__ import annotations

import base64
import binascii
import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from harvester.sandbox.clock import Clock
from harvester.sandbox.lives import Life, draw_life, life_from
from harvester.sandbox.pricing import Purchase
from harvester.sandbox.refusals import ApiError, invalid, not_found

CLIENT_SCOPE = "client_account"


@dataclass(frozen=True, slots=True)
class Account:
    """An account or client account; ``mode`` is served as ``type``.

    ``sibling_id`` is None for client accounts, which have no twin of the other mode.
    """

    id: str
    name: str
    handle: str
    mode: str
    scope: str
    currency: str
    beneficiary: str | None
    sibling_id: str | None
    is_public: bool


@dataclass(slots=True)
class Order:
    """An order; what is served of it follows from its life and the clock."""

    id: str
    number: int
    account_id: str
    created_at: float
    purchase: Purchase
    life: Life
    idempotency_key: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    payment_method: str | None = "invoice"
    estimate_id: str | None = None
    offset_link_id: str | None = None
    email: str | None = None

    @property
    def place(self) -> tuple[float, int]:
        """Where the order stands in its account's listing; the newest is the greatest."""
        return self.created_at, self.number


class World:
    """Accounts, the orders each holds in order of creation, and the ways to find them.

    ``organisation_beneficiary`` is named on retirements of accounts without one of their own.
    """

    organisation_beneficiary = "Acme Holding Ltd"

    def __init__(self, clock: Clock, rng: random.Random, mode: str) -> None:
        self.clock = clock
        self.mode = mode
        self.accounts: dict[str, Account] = {}
        self.organisation_id = new_id(rng)
        self.rng = rng
        self._orders: dict[str, Order] = {}
        self._by_account: dict[str, list[Order]] = {}
        self._by_key: dict[tuple[str, str], Order] = {}
        self._ordered_estimates: set[str] = set()

    def add_account(self, account: Account) -> None:
        """Take in an account; the first of the key's mode is the key's default account."""
        self.accounts[account.id] = account
        self._by_account[account.id] = []

    def own_accounts(self) -> list[Account]:
        """Return the accounts the key may act on, the default one first."""
        return [account for account in self.accounts.values() if account.mode == self.mode]

    def add_orders(self, orders: Iterable[Order]) -> None:
        """Take in orders that are newer than, or anywhere among, those already there."""
        for order in orders:
            self._orders[order.id] = order
            insort(self._by_account[order.account_id], order, key=attrgetter("place"))
            if order.idempotency_key is not None:
                self._by_key[order.account_id, order.idempotency_key] = order
            if order.estimate_id is not None:
                self._ordered_estimates.add(order.estimate_id)

    def place_order(
        self,
        account: Account,
        purchase: Purchase,
        *,
        idempotency_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        estimate_id: str | None = None,
    ) -> Order:
        """Create an order now. Raises ``ApiError`` 409 for a key or estimate already used."""
        if (account.id, idempotency_key) in self._by_key:
            raise ApiError(
                409,
                "order_idempotency_already_exists",
                "An order with this idempotency key already exists.",
            )
        if estimate_id in self._ordered_estimates:
            raise ApiError(
                409, "estimate_order_already_placed", "This estimate has already been ordered."
            )
        now = self.clock.now()
        order = self._new_order(account, purchase, draw_life(self.rng, now), now)
        order.idempotency_key = idempotency_key
        order.metadata = dict(metadata or {})
        order.estimate_id = estimate_id
        self.add_orders([order])
        return order

    def create_order_in(
        self,
        account: Account,
        status: str,
        purchase: Purchase,
        *,
        hold: bool,
        idempotency_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Order:
        """Create an order that enters ``status`` now; held, it never leaves it.

        It was received earlier, as its status needs, and is listed in that place.
        """
        now = self.clock.now()
        life = life_from(self.rng, status, now)
        order = self._new_order(account, purchase, life, life.starts[0])
        if hold:
            order.life = life.held(now)
        order.idempotency_key = idempotency_key
        order.metadata = dict(metadata or {})
        self.add_orders([order])
        return order

    def order(self, order_id: str, account_id: str | None = None) -> Order:
        """Return an order. Raises ``ApiError`` 404, also for another account's order."""
        order = self._orders.get(order_id)
        if order is None or account_id not in (None, order.account_id):
            raise not_found()
        return order

    def order_by_key(self, account_id: str, idempotency_key: str) -> Order:
        """Return the account's order with this key. Raises ``ApiError`` 404."""
        order = self._by_key.get((account_id, idempotency_key))
        if order is None:
            raise not_found()
        return order

    def orders(self, account_id: str) -> list[Order]:
        """Return an account's orders, newest first."""
        return self._by_account[account_id][::-1]

    def reached(self) -> dict[str, int]:
        """Return how far on its path each order is that the key may see, by the order's id."""
        now = self.clock.now()
        return {
            order.id: order.life.index(now)
            for account in self.own_accounts()
            for order in self._by_account[account.id]
        }

    def page(
        self, account_id: str, limit: int, after: str | None, offset_link_id: str | None = None
    ) -> tuple[list[Order], bool]:
        """Return up to ``limit`` orders after a cursor, newest first, and whether more follow."""
        rows = self._by_account[account_id]
        if offset_link_id is not None:
            rows = [order for order in rows if order.offset_link_id == offset_link_id]
        end = len(rows)
        if after is not None:
            last = self._orders.get(read_cursor(after))
            if last is None or last.account_id != account_id:
                raise invalid(".query.after", "should be a cursor")
            end = bisect_left(rows, last.place, key=attrgetter("place"))
        start = max(0, end - limit)
        return rows[start:end][::-1], start > 0

    def _new_order(
        self, account: Account, purchase: Purchase, life: Life, created_at: float
    ) -> Order:
        return Order(new_id(self.rng), len(self._orders), account.id, created_at, purchase, life)


def new_id(rng: random.Random) -> str:
    """Return an id of Lune's shape: 32 letters and digits."""
    return base64.b64encode(rng.randbytes(24), b"aZ").decode()


def cursor(last_id: str) -> str:
    """Return the opaque cursor that stands for the place after an object."""
    return base64.urlsafe_b64encode(f"after:{last_id}".encode()).decode().rstrip("=")


def read_cursor(after: str) -> str:
    """Return the id a cursor stands for.

    An older page of Lune's documents says that a cursor is the last object's id: taken too.
    """
    try:
        text = base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)).decode()
    except (binascii.Error, ValueError):
        return after
    return text.removeprefix("after:") if text.startswith("after:") else after
