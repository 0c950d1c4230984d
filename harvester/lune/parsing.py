"""Served JSON to the domain's nouns: strict about what is used, lenient about everything else.

Bytes that two readers could understand differently are refused. Unknown fields and unknown status
texts are kept, missing optional ones are fine. An order that cannot be read is rejected and leaves
the rest of its page alone. The messages of :class:`PayloadError` name rules and fields, never
served values, so they may be logged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NoReturn

from harvester.domain.lune_events import Subscription
from harvester.domain.orders import Account, Order, OrderPage, RejectedOrder, is_identifier
from harvester.domain.purchases import Quote, QuotedBundle

# Lune's own objects are five levels deep; this keeps us far from the interpreter's own limit.
_DEEPEST: Final = 64

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
_LONGEST_URL: Final = 2048
_LONGEST_SECRET: Final = 256
_INSTANT: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE
)


class PayloadError(ValueError):
    """Served bytes are not what the API serves."""


def load(data: bytes) -> Any:
    """Parse UTF-8 JSON, numbers with a fraction or exponent as Decimal.

    Refuses byte order marks, ``NaN`` and infinities, repeated keys, integers of more digits than
    the interpreter takes and nesting beyond its limit, with ``PayloadError``.
    """
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_float=_decimal,
            parse_constant=_refuse_constant,
        )
    except PayloadError:
        raise
    except UnicodeDecodeError:
        raise PayloadError("not UTF-8") from None
    except RecursionError:
        raise PayloadError("JSON nested too deep") from None
    except ValueError:
        raise PayloadError("not JSON") from None


def settle(value: Any, depth: int = 0) -> Any:
    """Return a parsed value as it can be stored: Decimals as their text, every string encodable.

    Refuses NUL and lone surrogates, which databases and files do not take, and deep nesting.
    """
    kind = type(value)
    if kind is str:
        return _storable(value)
    if kind is dict or kind is list:
        if depth >= _DEEPEST:
            raise PayloadError("nested too deep")
        if kind is list:
            return [settle(item, depth + 1) for item in value]
        return {
            # Nearly every leaf is plain text; a call for each would double the time of a page.
            _storable(key): item
            if item is None or (type(item) is str and item.isascii() and "\0" not in item)
            else settle(item, depth + 1)
            for key, item in value.items()
        }
    return str(value) if kind is Decimal else value


def is_line(text: object, longest: int) -> bool:
    """Tell whether this is printable text of 1 to ``longest`` characters."""
    return isinstance(text, str) and 0 < len(text) <= longest and text.isprintable()


def _storable(text: str) -> str:
    if "\0" in text:
        raise PayloadError("NUL in a text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PayloadError("half a surrogate pair in a text") from None
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise PayloadError("JSON with a repeated key")
    return fields


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise PayloadError("JSON number out of range") from None


def _refuse_constant(_name: str) -> NoReturn:
    raise PayloadError("JSON with NaN or an infinity")


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


def parse_order(data: bytes) -> Order:
    """Read one order; ``PayloadError`` when it is not one."""
    return _order(load(data))


def parse_order_page(data: bytes) -> OrderPage:
    """Read a page of orders; malformed ones are rejected. ``PayloadError`` for the page itself."""
    rows, next_cursor = _page(load(data))
    read = [order_or_rejected(row) for row in rows]
    return OrderPage(
        orders=tuple(row for row in read if isinstance(row, Order)),
        rejected=tuple(row for row in read if isinstance(row, RejectedOrder)),
        next_cursor=next_cursor,
    )


def order_or_rejected(row: object) -> Order | RejectedOrder:
    """Read one parsed object as an order, or reject it with the reason."""
    try:
        return _order(row)
    except PayloadError as error:
        return RejectedOrder(reference=_reference(row), reason=str(error), document=_shortened(row))


def parse_quote(data: bytes) -> Quote:
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


def parse_account(data: bytes, *, is_default: bool = False) -> Account:
    """Read one account; ``PayloadError`` when it is not one."""
    return _account(load(data), is_default=is_default)


def parse_account_page(data: bytes) -> AccountPage:
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


def parse_subscription(data: bytes) -> Subscription:
    """Read one webhook as it is set up; ``PayloadError`` when it is not one."""
    return _subscription(load(data))


def parse_subscriptions(data: bytes) -> list[Subscription]:
    """Read the list of webhooks; ``PayloadError`` when it is not one."""
    rows = load(data)
    if not isinstance(rows, list):
        raise PayloadError("webhooks: not a list")
    return [_subscription(row) for row in rows]


def _subscription(row: object) -> Subscription:
    fields = settle(row)
    if not isinstance(fields, dict):
        raise PayloadError("webhook: not an object")
    for name, longest in (
        ("id", 64),
        ("url", _LONGEST_URL),
        ("account_type", 64),
        ("secret", _LONGEST_SECRET),
    ):
        if not is_line(fields.get(name), longest):
            raise PayloadError(f"webhook: {name}: not printable text")
    created_at = parse_instant(fields.get("created_at"))
    account_ids = fields.get("account_ids") or []
    if created_at is None or not isinstance(fields.get("enabled"), bool):
        raise PayloadError("webhook: created_at or enabled: not as in the schema")
    if not isinstance(account_ids, list) or not all(isinstance(one, str) for one in account_ids):
        raise PayloadError("webhook: account_ids: not a list of texts")
    return Subscription(
        id=fields["id"],
        url=fields["url"],
        enabled=fields["enabled"],
        mode=fields["account_type"],
        created_at=created_at,
        account_ids=tuple(account_ids),
        secret=fields["secret"],
    )


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
    created_at = parse_instant(fields.get("created_at"))
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


def parse_instant(value: object) -> datetime | None:
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
