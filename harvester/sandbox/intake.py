"""Reading what is asked: request bodies and list parameters, judged by Lune's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from harvester.sandbox.catalogue import BUNDLES, DEFAULT_SELECTION
from harvester.sandbox.pricing import CENT, GRAM, STEPS, Purchase, price
from harvester.sandbox.refusals import ApiError, invalid

KEY_LENGTH = 100
LARGEST_PAGE = 100
DEFAULT_PAGE = 10

_AMOUNT = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_PERCENTAGE = re.compile(r"[0-9]+(\.[0-9]{1,2})?", re.ASCII)
_DIGITS = re.compile(r"[0-9]+", re.ASCII)
_ESTIMATE_ID = re.compile(r"[A-Za-z0-9]{32}", re.ASCII)
_MOST = Decimal(10) ** 9

Body = Mapping[str, Any]
Parts = tuple[tuple[str, Decimal], ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """What an order request says beyond the purchase."""

    idempotency_key: str | None
    metadata: Mapping[str, str]


def read_body(data: bytes, content_type: str) -> Body:
    """Return the JSON object of a request. Raises ``ApiError`` 415 or 400."""
    if content_type != "application/json":
        raise ApiError(415)
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise invalid(".body", "should be JSON") from None
    if not isinstance(body, dict):
        raise invalid(".body", "should be object")
    return body


def read_limit(text: str | None) -> int:
    """Return the page size asked for, 1 to 100 and 10 by default."""
    if text is None:
        return DEFAULT_PAGE
    if _DIGITS.fullmatch(text) is None:
        raise invalid(".query.limit", r'should match pattern "^\d+$"')
    if len(text) > 3 or not 1 <= int(text) <= LARGEST_PAGE:
        raise ApiError(
            400, "pagination_limit_invalid", f"The limit must be between 1 and {LARGEST_PAGE}."
        )
    return int(text)


def read_terms(body: Body) -> Terms:
    """Return idempotency key and metadata of an order request."""
    key = body.get("idempotency_key")
    if "idempotency_key" in body:
        if not isinstance(key, str):
            raise invalid(".body.idempotency_key", "should be string")
        if len(key) > KEY_LENGTH:
            raise invalid(
                ".body.idempotency_key", f"should NOT be longer than {KEY_LENGTH} characters"
            )
    metadata = body.get("metadata", {})
    if not isinstance(metadata, dict):
        raise invalid(".body.metadata", "should be object")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise invalid(f".body.metadata['{name}']", "should be string")
    return Terms(key, metadata)


def read_purchase_by_mass(body: Body) -> Purchase:
    """Return the purchase of a by-mass request: ``mass`` or ``bundle_masses``, not both."""
    if ("mass" in body) == ("bundle_masses" in body):
        raise invalid(".body", "should match exactly one schema in oneOf")
    if "mass" in body:
        tonnes = _mass(body["mass"], ".body.mass")
        purchase = Purchase(tonnes=tonnes, parts=_selection(body), step=_step(body))
    else:
        parts = _bundle_masses(body["bundle_masses"])
        total = sum((mass for _, mass in parts), Decimal())
        purchase = Purchase(tonnes=total, parts=parts, step=_step(body))
    return _of_some_quantity(purchase)


def read_purchase_by_value(body: Body) -> Purchase:
    """Return the purchase of a by-value request."""
    value = _amount(body.get("value"), ".body.value")
    if not CENT <= value <= _MOST:
        raise ApiError(
            400,
            "order_value_invalid",
            "Order value must not be lower than the currency's minimum unit, nor absurdly high.",
        )
    purchase = Purchase(value=value, parts=_selection(body), step=_step(body))
    if not price(purchase).quantity:
        raise ApiError(400, "order_value_invalid", "Order value buys no quantity.")
    return purchase


def read_purchase_by_estimate(body: Body) -> tuple[Purchase, str]:
    """Return the purchase of a by-estimate request and the estimate's id.

    The sandbox makes no estimates: every id of Lune's shape stands for one, of a mass that
    follows from the id. Raises ``ApiError`` 400 ``estimate_not_found`` for any other.
    """
    estimate_id = body.get("estimate_id")
    if not isinstance(estimate_id, str):
        raise invalid(".body.estimate_id", "should be string")
    if _ESTIMATE_ID.fullmatch(estimate_id) is None:
        raise ApiError(400, "estimate_not_found", "The estimate was not found.")
    tonnes = Decimal(int.from_bytes(estimate_id.encode()) % 5_000_000 + 1_000).scaleb(-6)
    purchase = Purchase(tonnes=tonnes, parts=_selection(body), step=_step(body))
    return _of_some_quantity(purchase), estimate_id


def _amount(value: object, where: str) -> Decimal:
    if not isinstance(value, str):
        raise invalid(where, "should be string")
    if _AMOUNT.fullmatch(value) is None:
        raise invalid(where, r'should match pattern "^[0-9]+(\.[0-9]+)?$"')
    return Decimal(value)


def _mass(mass: object, where: str) -> Decimal:
    if not isinstance(mass, dict):
        raise invalid(where, "should be object")
    amount = _amount(mass.get("amount"), f"{where}.amount")
    tonnes = amount * _unit(mass.get("unit"), f"{where}.unit")
    if not 0 < tonnes <= _MOST:
        raise _bad_quantity()
    return tonnes


def _step(body: Body) -> Decimal:
    if "quantity_trunc" not in body:
        return GRAM
    return _unit(body["quantity_trunc"], ".body.quantity_trunc")


def _unit(unit: object, where: str) -> Decimal:
    if not isinstance(unit, str) or unit not in STEPS:
        raise invalid(where, "should be equal to one of the allowed values")
    return STEPS[unit]


def _of_some_quantity(purchase: Purchase) -> Purchase:
    if not price(purchase).quantity:
        raise _bad_quantity()
    return purchase


def _bad_quantity() -> ApiError:
    return ApiError(400, "order_quantity_invalid", "Order quantity must be positive.")


def _bundle_masses(entries: object) -> Parts:
    if not isinstance(entries, list):
        raise invalid(".body.bundle_masses", "should be array")
    parts: list[tuple[str, Decimal]] = []
    for index, entry in enumerate(entries):
        where = f".body.bundle_masses[{index}]"
        name = _bundle_id(entry, where)
        if name not in BUNDLES or name in dict(parts):
            raise ApiError(400, "bundle_id_invalid", "A bundle is unknown or named twice.")
        parts.append((name, _mass(entry.get("mass"), f"{where}.mass")))
    if not parts:
        raise _bad_quantity()
    return tuple(parts)


def _selection(body: Body) -> Parts:
    if "bundle_selection" not in body:
        return DEFAULT_SELECTION
    entries = body["bundle_selection"]
    if not isinstance(entries, list):
        raise invalid(".body.bundle_selection", "should be array")
    names: list[str] = []
    percentages: list[Decimal] = []
    for index, entry in enumerate(entries):
        where = f".body.bundle_selection[{index}]"
        names.append(_bundle_id(entry, where))
        if "percentage" in entry:
            percentages.append(_percentage(entry["percentage"], f"{where}.percentage"))
    if any(name not in BUNDLES for name in names) or len(set(names)) < len(names):
        raise ApiError(
            400, "bundle_selection_bundle_invalid", "A bundle is unknown or selected twice."
        )
    if names and not percentages:
        return tuple((name, Decimal(1)) for name in names)
    if len(percentages) < len(names) or sum(percentages) != 100:
        raise ApiError(
            400,
            "bundle_selection_ratios_invalid",
            "Percentages must be given for all or none of the bundles and sum up to 100.",
        )
    return tuple(
        (name, percentage)
        for name, percentage in zip(names, percentages, strict=True)
        if percentage
    )


def _bundle_id(entry: object, where: str) -> str:
    if not isinstance(entry, dict):
        raise invalid(where, "should be object")
    name = entry.get("bundle_id")
    if not isinstance(name, str):
        raise invalid(f"{where}.bundle_id", "should be string")
    return name


def _percentage(value: object, where: str) -> Decimal:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100:
        return Decimal(value)
    if isinstance(value, str) and _PERCENTAGE.fullmatch(value) is not None:
        return Decimal(value)
    raise invalid(where, "should match exactly one schema in oneOf")
