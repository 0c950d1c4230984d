"""The bundles and projects on offer. Names and prices are the samples of Lune's schema."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Project:
    """A project credits come from; ``registry`` is the body that issues them."""

    id: str
    name: str
    kind: str
    slug: str
    registry: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """Projects sold together; ``unit_price`` is net, per tonne, in the account's currency."""

    id: str
    name: str
    slug: str
    unit_price: Decimal
    projects: tuple[tuple[Project, int], ...]


_MADRE = Project(
    "gMbvJoOaX54V1wpNaRY8dWDGQ7m239Bx",
    "Madre De Dios",
    "Forest Conservation",
    "madre-de-dios",
    "Verra",
)
_ALTO_MAYO = Project(
    "xe1BEV2VZqnzPkYxJgALg0GeQDoXlWO5",
    "Alto Mayo",
    "Forest Conservation",
    "alto-mayo",
    "Verra",
)
_RIMBA = Project(
    "7nQpW4yKd2LzXe9RmV1bTgHsJc5fAo8U",
    "Rimba Raya",
    "Forest Conservation",
    "rimba-raya",
    "Verra",
)
_KEO = Project(
    "D3kVw8ZsQ6tNfYp1LxRb5MhCj9gEaU2o",
    "Keo Seima",
    "Forest Conservation",
    "keo-seima",
    "Gold Standard",
)
_OLIVINE = Project(
    "mB5rJx2TqL9vKdGw7PzNc4HsYf1aEo6R",
    "Green Sand",
    "Enhanced Weathering",
    "green-sand",
    "Puro.earth",
)
_KELP = Project(
    "R8uZc3YnXw5QpLk1VgTd7JmBf2hSaE9o",
    "Kelp Forests",
    "Ocean Removal",
    "kelp-forests",
    "Isometric",
)

BUNDLES: dict[str, Bundle] = {
    bundle.id: bundle
    for bundle in (
        Bundle(
            "q9aKx7b6nNXMk3Yv3pD1mlW5Od2eLZE8",
            "Conserving forests in Asia",
            "conserving-forests-in-asia",
            Decimal("13.57"),
            ((_RIMBA, 58), (_KEO, 42)),
        ),
        Bundle(
            "xWaKJL3okjD46VpJ4yGXnQNZRe1vzP0w",
            "Ocean Carbon Removal",
            "ocean-carbon-removal",
            Decimal(250),
            ((_OLIVINE, 70), (_KELP, 30)),
        ),
        Bundle(
            "L0M3zv7Qr2OGRqY9WAVdbwKPx5XWao64",
            "Latin America Forestry",
            "latin-america-forestry",
            Decimal("7.13"),
            ((_MADRE, 29), (_ALTO_MAYO, 71)),
        ),
    )
}

DEFAULT_SELECTION: tuple[tuple[str, Decimal], ...] = (
    ("q9aKx7b6nNXMk3Yv3pD1mlW5Od2eLZE8", Decimal(95)),
    ("xWaKJL3okjD46VpJ4yGXnQNZRe1vzP0w", Decimal(5)),
)
"""What an account buys unless it says otherwise (Lune's schema, bundle selection)."""
