"""What a purchase costs, in ``Decimal`` throughout, so that the rows add up.

The rules reproduce the two worked samples of Lune's schema (12.07 kg, and a value of 0.54):
the fee is a tenth of the gross price, quantities are cut off at the gram, costs are rounded to
the cent per bundle, and the total is rounded up but never above the value that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal
from functools import lru_cache

from harvester.sandbox.catalogue import BUNDLES, DEFAULT_SELECTION, Bundle, Project

GRAM = Decimal("0.000001")
CENT = Decimal("0.01")
STEPS = {"g": GRAM, "kg": Decimal("0.001"), "t": Decimal(1)}
"""Tonnes per mass unit of the schema."""

_NET_OF_FEE = Decimal("0.9")


@dataclass(frozen=True, slots=True)
class Purchase:
    """What was asked for: a mass (``tonnes``) or a maximum ``value``, never both.

    ``parts`` weighs bundle ids against each other; ``step`` is what quantities are cut off at.
    """

    tonnes: Decimal | None = None
    value: Decimal | None = None
    parts: tuple[tuple[str, Decimal], ...] = DEFAULT_SELECTION
    step: Decimal = GRAM


@dataclass(frozen=True, slots=True)
class BundleRow:
    """One bundle's share of an order: tonnes and their net cost."""

    bundle: Bundle
    quantity: Decimal
    offset_cost: Decimal


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """One project's share of an order: tonnes and their net cost."""

    project: Project
    unit_price: Decimal
    quantity: Decimal
    offset_cost: Decimal


@dataclass(frozen=True, slots=True)
class Price:
    """A priced purchase. The rows sum up to ``quantity`` and ``offset_cost``."""

    rows: tuple[BundleRow, ...]
    quantity: Decimal
    offset_cost: Decimal
    total_cost: Decimal

    @property
    def commission(self) -> Decimal:
        """Lune's fee: what the total holds beyond the net cost."""
        return self.total_cost - self.offset_cost


def gross_price(bundle: Bundle) -> Decimal:
    """Return a bundle's price per tonne with the fee."""
    return (bundle.unit_price / _NET_OF_FEE).quantize(CENT, ROUND_HALF_UP)


@lru_cache(maxsize=4096)
def price(purchase: Purchase) -> Price:
    """Price a purchase. Its bundles must be in the catalogue."""
    total_weight = sum((weight for _, weight in purchase.parts), Decimal())
    tonnes = purchase.tonnes
    if tonnes is None:
        gross = sum((gross_price(BUNDLES[name]) * weight for name, weight in purchase.parts))
        tonnes = (purchase.value or Decimal()) * total_weight / gross
    rows = []
    for name, weight in purchase.parts:
        exact = weight if tonnes == total_weight else tonnes * weight / total_weight
        quantity = _cut(exact, purchase.step)
        cost = (quantity * BUNDLES[name].unit_price).quantize(CENT, ROUND_HALF_UP)
        rows.append(BundleRow(BUNDLES[name], quantity, cost))
    offset_cost = sum((row.offset_cost for row in rows), Decimal())
    total = (offset_cost / _NET_OF_FEE).quantize(CENT, ROUND_UP)
    if purchase.value is not None:
        most = purchase.value.quantize(CENT, ROUND_DOWN)
        total = max(min(total, most), offset_cost)
    return Price(tuple(rows), sum((row.quantity for row in rows), Decimal()), offset_cost, total)


@lru_cache(maxsize=4096)
def project_rows(purchase: Purchase) -> tuple[ProjectRow, ...]:
    """Split a purchase over the projects of its bundles; empty shares are left out."""
    return tuple(row for part in price(purchase).rows for row in _split(part) if row.quantity)


def _split(part: BundleRow) -> list[ProjectRow]:
    rows = []
    quantity_left, cost_left = part.quantity, part.offset_cost
    *others, (last, _) = part.bundle.projects
    for project, percent in others:
        quantity = _cut(part.quantity * percent / 100, GRAM)
        cost = _cut(part.offset_cost * percent / 100, CENT)
        rows.append(ProjectRow(project, part.bundle.unit_price, quantity, cost))
        quantity_left -= quantity
        cost_left -= cost
    rows.append(ProjectRow(last, part.bundle.unit_price, quantity_left, cost_left))
    return rows


def _cut(amount: Decimal, step: Decimal) -> Decimal:
    return (amount / step).to_integral_value(ROUND_DOWN) * step
