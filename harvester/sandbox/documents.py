"""The JSON objects the API serves. No property is ever left out; what is not there is null."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from harvester.sandbox.lives import COMPLETE, PAID, PLACED, RETIRING
from harvester.sandbox.pricing import (
    CENT,
    BundleRow,
    Price,
    ProjectRow,
    Purchase,
    gross_price,
    price,
    project_rows,
)
from harvester.sandbox.world import Account, Order, cursor

_WITH_BUNDLES = frozenset({PLACED, PAID, RETIRING, COMPLETE})
_WITH_PROJECTS = frozenset({RETIRING, COMPLETE})

Document = dict[str, Any]


def account_document(account: Account, organisation_id: str) -> Document:
    """Return an Account or ClientAccount object."""
    document: Document = {
        "id": account.id,
        "name": account.name,
        "organisation_id": organisation_id,
        "handle": account.handle,
        "currency": account.currency,
        "type": account.mode,
        "logo": None,
        "beneficiary": account.beneficiary,
        "bundle_portfolio_id": None,
        "external_pages_visibility": "public" if account.is_public else "hidden",
        "scope": account.scope,
    }
    if account.sibling_id is not None:
        document["sibling_id"] = account.sibling_id
    return document


def order_document(order: Order, account: Account, status: str, base_url: str) -> Document:
    """Return an Order object as it is in ``status``; ``base_url`` ends in ``/v1``."""
    purchase = order.purchase
    priced = price(purchase) if status in _WITH_BUNDLES else None
    done = status == COMPLETE
    return {
        "id": order.id,
        "idempotency_key": order.idempotency_key,
        "type": "quantity" if purchase.value is None else "value",
        "status": status,
        "currency": account.currency,
        "offset_cost": money(priced.offset_cost) if priced else None,
        "total_cost": money(priced.total_cost) if priced else None,
        "commission": money(priced.commission) if priced else None,
        "quantity": plain(priced.quantity) if priced else None,
        "payment_method": order.payment_method,
        "created_at": timestamp(order.created_at),
        "bundles": _bundles(priced, known=status in _WITH_PROJECTS) if priced else None,
        "projects": _projects(purchase, status) if priced else None,
        "certificate": f"{base_url}/orders/{order.id}/certificate" if done else None,
        # The samples Lune publishes still show this former name, always null.
        "certificate_url": None,
        "public_certificate_url": (
            f"https://sustainability.lune.co/{account.handle}?certificate={order.number}"
            if done and account.is_public
            else None
        ),
        "metadata": dict(order.metadata),
        "offset_link_id": order.offset_link_id,
        "email": order.email,
        "requested_quantity": plain(purchase.tonnes) if purchase.tonnes is not None else None,
        "requested_value": format(purchase.value, "f") if purchase.value is not None else None,
        "estimate_id": order.estimate_id,
    }


def quote_document(purchase: Purchase, currency: str) -> Document:
    """Return an OrderQuoteByQuantity or OrderQuoteByValue object."""
    priced = price(purchase)
    return {
        "currency": currency,
        "requested_quantity": plain(purchase.tonnes) if purchase.tonnes is not None else None,
        "requested_value": format(purchase.value, "f") if purchase.value is not None else None,
        "estimated_quantity": plain(priced.quantity),
        "estimated_offset_cost": money(priced.offset_cost),
        "estimated_total_cost": money(priced.total_cost),
        "estimated_commission": money(priced.commission),
        "bundles": _bundles(priced, known=False),
    }


def page_document(rows: list[Document], last_id: str | None, *, has_more: bool) -> Document:
    """Return one page of a listing; ``last_id`` is the id the next page comes after."""
    next_cursor = cursor(last_id) if has_more and last_id is not None else None
    return {"has_more": has_more, "next_cursor": next_cursor, "data": rows}


def project_status(index: int, count: int, status: str) -> str:
    """Say what has become of a project's credits: while retiring, the last ones wait."""
    return "retired" if status == COMPLETE or index < count - 1 else "allocated"


def plain(amount: Decimal) -> str:
    """Write a quantity without exponent or needless zeros."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(amount: Decimal) -> str:
    """Write an amount of money with its cents."""
    return format(amount.quantize(CENT), "f")


def timestamp(instant: float) -> str:
    """Write seconds since the epoch as RFC 3339 in UTC with milliseconds, as Lune does."""
    moment = datetime.fromtimestamp(instant, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bundles(priced: Price, *, known: bool) -> list[Document]:
    return [_bundle(row, known=known) for row in priced.rows]


def _bundle(row: BundleRow, *, known: bool) -> Document:
    return {
        "bundle_id": row.bundle.id,
        "bundle_name": row.bundle.name,
        "primary_image": f"https://assets.lune.co/bundles/{row.bundle.slug}.png",
        "quantity": plain(row.quantity),
        "unit_price": plain(row.bundle.unit_price),
        "gross_unit_price": plain(gross_price(row.bundle)),
        "offset_cost": money(row.offset_cost),
        # Null until supply is looked at, as in the schema's samples of placed orders and quotes.
        "insufficient_available_quantity": False if known else None,
    }


def _projects(purchase: Purchase, status: str) -> list[Document]:
    if status not in _WITH_PROJECTS:
        return []
    rows = project_rows(purchase)
    return [
        _project(row, project_status(index, len(rows), status)) for index, row in enumerate(rows)
    ]


def _project(row: ProjectRow, status: str) -> Document:
    return {
        "project_id": row.project.id,
        "project_name": row.project.name,
        "project_type": row.project.kind,
        "project_slug": row.project.slug,
        "project_logo": f"https://assets.lune.co/projects/{row.project.slug}-logo.png",
        "quantity": plain(row.quantity),
        "unit_price": plain(row.unit_price),
        "offset_cost": money(row.offset_cost),
        "status": status,
    }
