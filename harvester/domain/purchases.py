"""What can be bought, checked before anything is sent, and what it would cost.

Amounts are Decimals from the text an operator wrote to the text Lune is sent; never floats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

from harvester.domain.orders import is_identifier

UNITS: Final = {"g": Decimal("0.000001"), "kg": Decimal("0.001"), "t": Decimal(1)}
"""Tonnes in each unit of Lune's schema."""

LONGEST_KEY: Final = 100
"""Characters of an idempotency key (Lune's schema)."""

_AMOUNT: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_LONGEST_AMOUNT: Final = 20
"""Characters; with a unit's six decimals the product stays within Decimal's 28 digits."""
_GRAM: Final = Decimal("0.000001")
_CENT: Final = Decimal("0.01")

Kind = Literal["mass", "value", "estimate"]


@dataclass(frozen=True, slots=True)
class BundleShare:
    """A bundle to buy from, and its percentage; None shares equally."""

    bundle_id: str
    percentage: Decimal | None


@dataclass(frozen=True, slots=True)
class Purchase:
    """One thing to buy; made by :func:`by_mass`, :func:`by_value` or :func:`by_estimate`.

    ``request`` is the JSON object Lune is asked with, without the idempotency key. Metadata may
    hold names and addresses, so it is not shown.
    """

    kind: Kind
    request: Mapping[str, Any] = field(repr=False)

    def priced(self) -> dict[str, Any]:
        """Return the part of the request that is priced."""
        return {name: value for name, value in self.request.items() if name != "metadata"}


@dataclass(frozen=True, slots=True)
class QuotedBundle:
    """A bundle's part of a quote: tonnes, price a tonne, cost without fees."""

    bundle_id: str
    name: str
    quantity: Decimal
    unit_price: Decimal
    offset_cost: Decimal
    is_short: bool


@dataclass(frozen=True, slots=True)
class Quote:
    """What a purchase would cost; costs in ``currency``, ``quantity`` in tonnes.

    ``document`` is the quote as Lune served it.
    """

    currency: str
    quantity: Decimal
    offset_cost: Decimal
    commission: Decimal
    total_cost: Decimal
    bundles: tuple[QuotedBundle, ...]
    document: Mapping[str, Any] = field(repr=False)


def by_mass(
    amount: str,
    unit: str,
    bundles: Iterable[BundleShare] = (),
    metadata: Mapping[str, str] | None = None,
) -> Purchase:
    """Buy a mass of CO2, to the gram. ValueError with the rule that is broken."""
    if unit not in UNITS:
        raise ValueError(f"the unit should be one of {', '.join(UNITS)}")
    mass = _positive(amount)
    if (mass * UNITS[unit]) % _GRAM:
        raise ValueError("the amount is finer than a gram, the least that can be bought")
    request: dict[str, Any] = {"mass": {"amount": amount, "unit": unit}}
    return Purchase("mass", request | _shared(bundles, metadata))


def by_value(
    amount: str,
    bundles: Iterable[BundleShare] = (),
    metadata: Mapping[str, str] | None = None,
) -> Purchase:
    """Spend at most this much of the account's currency. ValueError with the broken rule."""
    if _positive(amount) % _CENT:
        raise ValueError("the amount has more than two decimals, finer than any currency here")
    return Purchase("value", {"value": amount} | _shared(bundles, metadata))


def by_estimate(
    estimate_id: str,
    bundles: Iterable[BundleShare] = (),
    metadata: Mapping[str, str] | None = None,
) -> Purchase:
    """Buy what an emission estimate came to. ValueError with the broken rule."""
    if not is_identifier(estimate_id):
        raise ValueError("the estimate id should be letters, digits, - and _ only")
    return Purchase("estimate", {"estimate_id": estimate_id} | _shared(bundles, metadata))


def check_idempotency_key(key: str) -> str:
    """Return an idempotency key that Lune takes; ValueError with the rule otherwise."""
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise ValueError(f"an idempotency key has 1 to {LONGEST_KEY} printable characters")
    return key


def parse_share(text: str) -> BundleShare:
    """Read ``ID=PERCENT``, or ``ID`` alone; ValueError with the rule otherwise."""
    bundle_id, separator, percent = text.partition("=")
    if not is_identifier(bundle_id):
        raise ValueError("a bundle id should be letters, digits, - and _ only")
    return BundleShare(bundle_id, _positive(percent) if separator else None)


def in_doubt(reason: object, key: str) -> str:
    """Say of an order that nobody knows whether Lune took it, and how to find out."""
    return (
        f"nobody knows yet whether Lune took the order: {reason}. Run the same command with "
        f"--idempotency-key {key}: that finds it or places it, and never buys twice"
    )


def _positive(text: str) -> Decimal:
    if len(text) > _LONGEST_AMOUNT or not _AMOUNT.fullmatch(text):
        raise ValueError("an amount should be a decimal number such as 259.11")
    amount = Decimal(text)
    if not amount:
        raise ValueError("an amount should be more than zero")
    return amount


def _shared(bundles: Iterable[BundleShare], metadata: Mapping[str, str] | None) -> dict[str, Any]:
    shared: dict[str, Any] = {}
    shares = list(bundles)
    if shares:
        _check_shares(shares)
        shared["bundle_selection"] = [_selection(share) for share in shares]
    if metadata:
        if any(_is_broken(text) for pair in metadata.items() for text in pair):
            raise ValueError("metadata should be text in UTF-8")
        shared["metadata"] = dict(metadata)
    return shared


def _is_broken(text: str) -> bool:
    # A byte of the command line that is no UTF-8 arrives as half a surrogate pair.
    return any("\ud800" <= character <= "\udfff" for character in text)


def _check_shares(shares: list[BundleShare]) -> None:
    if len({share.bundle_id for share in shares}) < len(shares):
        raise ValueError("a bundle should be named once")
    percentages = [share.percentage for share in shares if share.percentage is not None]
    if percentages and len(percentages) < len(shares):
        raise ValueError("either all bundles have a percentage or none has")
    if any(percentage % _CENT for percentage in percentages):
        raise ValueError("a percentage has at most two decimals")
    if percentages and sum(percentages) != 100:
        raise ValueError(f"the percentages should sum to 100, not {sum(percentages)}")


def _selection(share: BundleShare) -> dict[str, Any]:
    if share.percentage is None:
        return {"bundle_id": share.bundle_id}
    whole = share.percentage == share.percentage.to_integral_value()
    # The schema wants a whole percentage as a number and any other as a string.
    return {
        "bundle_id": share.bundle_id,
        "percentage": int(share.percentage) if whole else str(share.percentage.quantize(_CENT)),
    }
