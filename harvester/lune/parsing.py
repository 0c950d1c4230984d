"""Served JSON to the domain's nouns: strict about what is used, lenient about everything else.

Unknown fields and unknown status texts are kept, missing optional ones are fine. An order that
cannot be read is set aside and leaves the rest of its page alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from harvester.domain.orders import Account, Order, OrderPage, SetAside, is_identifier
from harvester.domain.purchases import Quote, QuotedBundle
from harvester.lune.payload import PayloadError, is_line, load, settle

# Decimal strings by Lune's schema; only the quantity is used, but an order with one of the others
# broken is not one to file for an auditor.
_AMOUNTS: Final = (
    "quantity",
    "offset_cost",
    "total_cost",
    "commission",
    "requested_quantity",
    "requested_value",
)
_AMOUNT: Final = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_LONGEST_AMOUNT: Final = 64
_LONGEST_STATUS: Final = 64
_LONGEST_CURSOR: Final = 1024
_LONGEST_REFERENCE: Final = 64
_LONGEST_DOCUMENT: Final = 4096
_INSTANT: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class AccountPage:
    """One page of accounts.

    ``skipped`` has a reason for each row that could not be read; ``references`` identifies all
    rows, those too, so that a page served twice is recognised.
    """

    accounts: tuple[Account, ...]
    skipped: tuple[str, ...]
    references: frozenset[str]
    next_cursor: str | None


def read_order(data: bytes) -> Order:
    """Read one order; ``PayloadError`` when it is not one."""
    return _order(load(data))


def read_order_page(data: bytes) -> OrderPage:
    """Read a page of orders; malformed ones are set aside. ``PayloadError`` for the page itself."""
    rows, next_cursor = _page(load(data))
    read = [order_or_set_aside(row) for row in rows]
    return OrderPage(
        orders=tuple(row for row in read if isinstance(row, Order)),
        set_aside=tuple(row for row in read if isinstance(row, SetAside)),
        next_cursor=next_cursor,
    )


def order_or_set_aside(row: object) -> Order | SetAside:
    """Read one parsed object as an order, or set it aside with the reason."""
    try:
        return _order(row)
    except PayloadError as error:
        return SetAside(reference=_reference(row), reason=str(error), document=_shortened(row))


def read_quote(data: bytes) -> Quote:
    """Read a quote; ``PayloadError`` when it is not one."""
    row = load(data)
    if not isinstance(row, dict) or not isinstance(row.get("bundles"), list):
        raise PayloadError("quote: not an object with bundles")
    currency = row.get("currency")
    if not isinstance(currency, str) or not is_line(currency, 16):
        raise PayloadError("currency: not a line of text")
    return Quote(
        currency=currency,
        quantity=_money(row, "estimated_quantity"),
        offset_cost=_money(row, "estimated_offset_cost"),
        commission=_money(row, "estimated_commission"),
        total_cost=_money(row, "estimated_total_cost"),
        bundles=tuple(_quoted_bundle(bundle) for bundle in row["bundles"]),
        document=row,
    )


def _quoted_bundle(row: object) -> QuotedBundle:
    if not isinstance(row, dict):
        raise PayloadError("bundles: not objects")
    return QuotedBundle(
        bundle_id=str(row.get("bundle_id", "")),
        name=str(row.get("bundle_name", "")),
        quantity=_money(row, "quantity"),
        unit_price=_money(row, "unit_price"),
        offset_cost=_money(row, "offset_cost"),
        is_short=row.get("insufficient_available_quantity") is True,
    )


def _money(row: Mapping[str, Any], name: str) -> Decimal:
    text = str(row.get(name))
    if len(text) > _LONGEST_AMOUNT or not _AMOUNT.fullmatch(text):
        raise PayloadError(f"{name}: not a decimal number")
    return Decimal(text)


def read_account(data: bytes, *, is_default: bool = False) -> Account:
    """Read one account; ``PayloadError`` when it is not one."""
    return _account(load(data), is_default=is_default)


def read_account_page(data: bytes) -> AccountPage:
    """Read a page of accounts, leaving out malformed ones. ``PayloadError`` for the page itself."""
    rows, next_cursor = _page(load(data))
    accounts: list[Account] = []
    skipped: list[str] = []
    for row in rows:
        try:
            accounts.append(_account(row, is_default=False))
        except PayloadError as error:
            skipped.append(str(error))
    references = frozenset(_reference(row) for row in rows)
    return AccountPage(tuple(accounts), tuple(skipped), references, next_cursor)


def _page(page: object) -> tuple[list[object], str | None]:
    """Return a page's rows and the cursor of the next one, None at the end."""
    if not isinstance(page, dict):
        raise PayloadError("not a page: not an object")
    rows, has_more = page.get("data"), page.get("has_more")
    if not isinstance(rows, list) or not isinstance(has_more, bool):
        raise PayloadError("not a page: data is not a list or has_more not a boolean")
    if not has_more:
        # Documents disagree whether next_cursor is null on the last page; has_more decides.
        return rows, None
    if not rows:
        raise PayloadError("pagination: an empty page promises more")
    cursor = page.get("next_cursor")
    if cursor is None:
        # "after is an object ID that defines your place in the list" (Lune's list orders page).
        last = rows[-1]
        cursor = last.get("id") if isinstance(last, dict) else None
    if not isinstance(cursor, str) or not is_line(cursor, _LONGEST_CURSOR):
        raise PayloadError("pagination: more is promised without a usable cursor")
    return rows, cursor


def _order(row: object) -> Order:
    fields = _fields(row)
    document = settle({name: value for name, value in fields.items() if name != "email"})
    problems: list[str] = []
    if not is_line(fields.get("status"), _LONGEST_STATUS):
        problems.append(f"status: not printable text of 1 to {_LONGEST_STATUS} characters")
    created_at = read_instant(fields.get("created_at"))
    if created_at is None:
        problems.append("created_at: not an RFC 3339 instant of the years 1970 to 9999")
    key = fields.get("idempotency_key")
    if key is not None and not isinstance(key, str):
        problems.append("idempotency_key: not text")
    problems += [
        f"{name}: not a decimal of at most {_LONGEST_AMOUNT} characters"
        for name in _AMOUNTS
        if fields.get(name) is not None and _amount(fields[name]) is None
    ]
    problems += [
        f"{name}: not a list"
        for name in ("bundles", "projects")
        if not isinstance(fields.get(name), list | None)
    ]
    if not isinstance(fields.get("metadata"), dict | None):
        problems.append("metadata: not an object")
    if problems or created_at is None:
        raise PayloadError("; ".join(problems))
    return Order(
        id=document["id"],
        status=document["status"],
        created_at=created_at,
        idempotency_key=key,
        quantity=_amount(fields.get("quantity")),
        metadata=document.get("metadata") or {},
        document=document,
    )


def _account(row: object, *, is_default: bool) -> Account:
    fields = settle(_fields(row))
    if not is_line(fields.get("type"), _LONGEST_STATUS):
        raise PayloadError("type: not printable text")
    texts = ("name", "scope", "currency", "beneficiary", "organisation_id")
    for name in texts:
        if not isinstance(fields.get(name), str | None):
            raise PayloadError(f"{name}: not text")
    return Account(
        id=fields["id"],
        name=fields.get("name") or "",
        mode=fields["type"],
        scope=fields.get("scope") or "account",
        currency=fields.get("currency"),
        beneficiary=fields.get("beneficiary"),
        organisation_id=fields.get("organisation_id"),
        is_default=is_default,
    )


def _fields(row: object) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise PayloadError("not an object")
    served_id = row.get("id")
    if not isinstance(served_id, str) or not is_identifier(served_id):
        raise PayloadError("id: not 1 to 64 letters, digits, dashes and underscores")
    return row


def _amount(value: object) -> str | None:
    """Return a decimal string as it is, or a number's digits; None when it is neither."""
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        # Written out, an exponent can fill the memory.
        small = isinstance(exponent, int) and abs(exponent) <= _LONGEST_AMOUNT
        value = format(value, "f") if small else None
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > _LONGEST_AMOUNT:
        return None
    return value if _AMOUNT.fullmatch(value) else None


def read_instant(value: object) -> datetime | None:
    """Return an RFC 3339 instant in UTC, to the microsecond; None when it is not one."""
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        return None
    try:
        instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return instant if instant.year >= 1970 else None


def _reference(row: object) -> str:
    """Return a printable name of at most 80 characters for a row: its id, or a digest."""
    served_id = row.get("id") if isinstance(row, dict) else None
    if not isinstance(served_id, str) or not served_id:
        return f"sha256:{hashlib.sha256(_dump(row).encode()).hexdigest()}"
    escaped = ascii(served_id)[1:-1]
    if len(escaped) <= _LONGEST_REFERENCE:
        return escaped
    # Two long ids may begin alike.
    digest = hashlib.sha256(escaped.encode()).hexdigest()[:12]
    return f"{escaped[:_LONGEST_REFERENCE]}...{digest}"


def _shortened(row: object) -> str:
    if isinstance(row, dict):
        row = {name: value for name, value in row.items() if name != "email"}
    return _dump(row)[:_LONGEST_DOCUMENT]


def _dump(row: object) -> str:
    try:
        return json.dumps(row, default=str, sort_keys=True)
    except RecursionError:
        return '"nested too deep"'
