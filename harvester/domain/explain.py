"""What an order waits for, in words for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from harvester.domain.lifecycle import PAID, PLACED, RECEIVED, RETIRING, is_open

_NEXT = {
    RECEIVED: "Lune to process it",
    PLACED: "payment",
    PAID: "credits to be allocated (fractions pool until they make a tonne)",
    RETIRING: "the rest of the credits to be retired",
}
_PAYMENT = {
    "invoice": "payment: Lune's invoice is outstanding",
    "card": "payment: the card is to be charged",
}


def waits_for(
    status: str,
    certificate_state: str | None,
    reason: str | None,
    document: Mapping[str, Any] | None = None,
) -> str | None:
    """Say what has to happen next for an order; None when nothing has to.

    ``certificate_state`` and ``reason`` are the ledger's: why its certificate could not be had.
    ``document`` is the order as Lune last served it; what it says makes the answer exact.
    """
    if is_open(status):
        general = _NEXT.get(status, "Lune to serve a status that it documents")
        return _in_particular(status, document or {}) or general
    if certificate_state in {"owed", "failed"}:
        return f"its certificate ({reason or 'not asked for yet'})"
    return None


def _in_particular(status: str, document: Mapping[str, Any]) -> str | None:
    """Return what the order itself says of its wait (Lune's schema), if it says anything."""
    reasons = []
    if status == PLACED:
        method = document.get("payment_method")
        reasons.append(_PAYMENT.get(method) if isinstance(method, str) else None)
    if status in {PLACED, PAID, RETIRING}:
        reasons.append(_shortage(_rows(document, "bundles")))
    if status == RETIRING:
        reasons.append(_unretired(_rows(document, "projects")))
    if status in {PAID, RETIRING} and _is_fraction(document.get("quantity")):
        reasons.append(
            "less than a tonne: pooled with the beneficiary's other orders until they make one"
        )
    return "; ".join(reason for reason in reasons if reason) or None


def _shortage(bundles: Sequence[Mapping[str, Any]]) -> str | None:
    short = [
        str(bundle.get("bundle_name") or bundle.get("bundle_id"))
        for bundle in bundles
        if bundle.get("insufficient_available_quantity") is True
    ]
    return f"inventory, which is short in {', '.join(short)}" if short else None


def _unretired(projects: Sequence[Mapping[str, Any]]) -> str | None:
    waiting = [one for one in projects if one.get("status") != "retired"]
    if not waiting:
        return None
    names = ", ".join(str(one.get("project_name") or one.get("project_id")) for one in waiting)
    done = len(projects) - len(waiting)
    return f"credits to be retired in {names} ({done} of {len(projects)} projects are retired)"


def _is_fraction(quantity: object) -> bool:
    try:
        return 0 < Decimal(str(quantity)) < 1
    except InvalidOperation:
        return False


def _rows(document: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    rows = document.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
