from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harvester.domain.orders import Order, RejectedOrder
from harvester.lune.parsing import (
    PayloadError,
    load,
    order_or_rejected,
    parse_account,
    parse_account_page,
    parse_order,
    parse_order_page,
)

ORDER: dict[str, Any] = {
    "id": "VfdoQ0PZjGMzvYO46lNA6kbgN1eOJx9B",
    "metadata": {"customer": "Zoë"},
    "idempotency_key": "INV-1",
    "type": "quantity",
    "status": "placed",
    "currency": "USD",
    "offset_cost": "0.31",
    "total_cost": "0.35",
    "commission": "0.04",
    "quantity": "0.012069",
    "created_at": "2023-01-04T15:00:27.349Z",
    "bundles": [{"bundle_id": "q9aKx7b6nNXMk3Yv3pD1mlW5Od2eLZE8", "quantity": "0.011466"}],
    "projects": [],
    "certificate": None,
    "offset_link_id": None,
    "email": "someone@example.com",
}
ACCOUNT: dict[str, Any] = {
    "id": "ljmkOq7vXd239gAE9WALWQ8ZGVD5ExNz",
    "name": "ACME",
    "type": "live",
    "scope": "account",
    "currency": "USD",
    "beneficiary": "ACME Inc",
    "organisation_id": "VndoQ0PZjGMzvYOZGwqy6kbgN1eOJx9B",
}


def order(**changes: Any) -> Order | RejectedOrder:
    return order_or_rejected(ORDER | changes)


def good(**changes: Any) -> Order:
    read = order(**changes)
    assert isinstance(read, Order), read
    return read


def bad(**changes: Any) -> RejectedOrder:
    read = order(**changes)
    assert isinstance(read, RejectedOrder), read
    return read


def page(rows: Any, *, has_more: Any = False, **more: Any) -> bytes:
    return json.dumps({"data": rows, "has_more": has_more, **more}).encode()


def test_an_order_is_read_with_everything_but_the_email() -> None:
    read = parse_order(json.dumps(ORDER).encode())
    assert read == Order(
        id=ORDER["id"],
        status="placed",
        created_at=datetime(2023, 1, 4, 15, 0, 27, 349000, UTC),
        idempotency_key="INV-1",
        quantity="0.012069",
        metadata={"customer": "Zoë"},
        document={name: value for name, value in ORDER.items() if name != "email"},
    )


def test_unknown_fields_and_statuses_are_kept() -> None:
    read = good(status="under review", colour="green")
    assert read.status == "under review"
    assert read.document["colour"] == "green"


def test_optional_fields_may_be_missing_or_null() -> None:
    bare = {name: ORDER[name] for name in ("id", "status", "created_at")}
    for row in (bare, bare | {"metadata": None, "quantity": None, "bundles": None}):
        read = order_or_rejected(row)
        assert isinstance(read, Order)
        assert (read.metadata, read.quantity, read.idempotency_key) == ({}, None, None)


def test_a_metadata_value_of_another_type_is_kept() -> None:
    assert good(metadata={"lines": [1, None]}).metadata == {"lines": [1, None]}


@pytest.mark.parametrize(
    ("literal", "text"),
    [("1040", "1040"), ("0.10", "0.10"), ("5e-7", "0.0000005"), ('"7176.00"', "7176.00")],
)
def test_amounts_are_exact_whether_text_or_numbers(literal: str, text: str) -> None:
    read = parse_order(
        json.dumps(ORDER | {"quantity": None})
        .replace('"quantity": null', f'"quantity": {literal}', 1)
        .encode()
    )
    assert read.quantity == text
    json.dumps(dict(read.document))  # and the document can be kept


@pytest.mark.parametrize(
    "literal",
    [
        '"-1"',
        '"1,5"',
        '"1e5"',
        '""',
        '"\u0661"',
        "true",
        "[]",
        "-1",
        "1e999",
        "1e-999999999",
        '"' + "9" * 65 + '"',
        "9" * 65,
        '"1\\n"',
    ],
)
def test_an_amount_that_is_no_short_decimal_rejects_the_order(literal: str) -> None:
    text = json.dumps(ORDER | {"commission": None})
    row = load(text.replace('"commission": null', f'"commission": {literal}').encode())
    read = order_or_rejected(row)
    assert isinstance(read, RejectedOrder)
    assert read.reason == "commission: not a decimal of at most 64 characters"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", 5),
        ("status", ""),
        ("status", None),
        ("status", "x" * 65),
        ("status", "pa\x1bid"),
        ("status", "paid\n"),
        ("created_at", None),
        ("created_at", 1672844427),
        ("created_at", "2023-01-04"),
        ("created_at", "2023-01-04T15:00:27"),
        ("created_at", "2023-13-04T15:00:27Z"),
        ("created_at", "1969-12-31T23:59:59Z"),
        ("created_at", "9999-12-31T23:59:59-01:00"),
        ("created_at", "0001-01-01T00:00:00+01:00"),
        ("created_at", "2023-W01-3T15:00:27Z"),
        ("idempotency_key", 5),
        ("bundles", {}),
        ("projects", "none"),
        ("metadata", [1]),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not(field: str, value: Any) -> None:
    read = bad(**{field: value})
    assert read.reference == ORDER["id"]
    assert read.reason.startswith(f"{field}: not ")
    if isinstance(value, str) and len(value) > 4:
        assert value not in read.reason


def test_every_problem_of_an_order_is_named() -> None:
    read = bad(status=5, created_at=5, quantity="x")
    named = [part.partition(":")[0] for part in read.reason.split("; ")]
    assert named == ["status", "created_at", "quantity"]


@pytest.mark.parametrize(
    ("served", "instant"),
    [
        ("2023-01-04T16:00:27+01:00", datetime(2023, 1, 4, 15, 0, 27, tzinfo=UTC)),
        ("2023-01-04t15:00:27.1234567z", datetime(2023, 1, 4, 15, 0, 27, 123456, UTC)),
    ],
)
def test_any_offset_becomes_utc(served: str, instant: datetime) -> None:
    read = good(created_at=served)
    assert read.created_at == instant
    assert read.created_at.tzinfo is UTC


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_text_no_database_takes_is_rejected_wherever_it_is(text: str) -> None:
    deep = bad(metadata={"a": [{"b": text}]})
    key = bad(**{text: 1})
    for read in (deep, key):
        read.document.encode()
        assert "\0" not in read.document


def test_a_deeply_nested_order_is_rejected_alone() -> None:
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    read = parse_order_page(page([ORDER, ORDER | {"id": "deep", "metadata": {"a": nested}}]))
    assert [order.id for order in read.orders] == [ORDER["id"]]
    assert [(row.reference, row.reason) for row in read.rejected] == [("deep", "nested too deep")]


@pytest.mark.parametrize("served_id", ["../../etc/passwd", "a/b", "", "x" * 65, "\x1b[31m", "é", 7])
def test_an_unsafe_id_gets_a_printable_reference(served_id: Any) -> None:
    reference = bad(id=served_id).reference
    assert reference.isprintable()
    assert reference.isascii()
    assert 0 < len(reference) <= 80


def test_what_has_no_id_is_referred_to_by_its_digest() -> None:
    rows = parse_order_page(page([5, None, [], {"status": "paid"}])).rejected
    assert all(row.reference.startswith("sha256:") for row in rows)
    assert len({row.reference for row in rows}) == 4


def test_long_ids_that_begin_alike_stay_apart() -> None:
    assert bad(id="x" * 500 + "a").reference != bad(id="x" * 500 + "b").reference


def test_a_rejected_document_is_short_and_has_no_email() -> None:
    document = bad(status=5, metadata={"note": "n" * 10_000}).document
    assert len(document.encode()) == 4096
    assert "someone@example.com" not in bad(status=5).document


def test_one_malformed_order_leaves_the_other_99_alone() -> None:
    rows: list[Any] = [ORDER | {"id": f"order{n}"} for n in range(100)]
    rows[50] = rows[50] | {"status": 5}
    read = parse_order_page(page(rows))
    assert len(read.orders) == 99
    assert [row.reference for row in read.rejected] == ["order50"]


def test_has_more_ends_a_listing_whatever_the_cursor_says() -> None:
    assert parse_order_page(page([ORDER], next_cursor="more")).next_cursor is None
    assert parse_order_page(page([], next_cursor=None)).next_cursor is None


def test_without_a_cursor_the_last_id_is_the_cursor() -> None:
    assert parse_order_page(page([ORDER], has_more=True)).next_cursor == ORDER["id"]
    assert parse_order_page(page([ORDER], has_more=True, next_cursor="c")).next_cursor == "c"


@pytest.mark.parametrize(
    "body",
    [
        page([], has_more=True, next_cursor="c"),
        page([5], has_more=True),
        page([ORDER], has_more=True, next_cursor=""),
        page([ORDER], has_more=True, next_cursor=5),
        page([ORDER], has_more=True, next_cursor="a\r\nb"),
        page([ORDER], has_more=True, next_cursor="c" * 2000),
    ],
)
def test_a_promise_without_a_way_on_is_refused(body: bytes) -> None:
    with pytest.raises(PayloadError, match=r"^pagination: "):
        parse_order_page(body)


@pytest.mark.parametrize(
    "body",
    [b"[]", b"null", b"{}", page({}), page([ORDER], has_more="no"), page([ORDER], has_more=None)],
)
def test_what_is_not_a_page_is_refused(body: bytes) -> None:
    with pytest.raises(PayloadError, match="not a page"):
        parse_order_page(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b'{"a":1', "not JSON"),
        (b"{} {}", "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "not JSON"),
        (b'{"a":1,"a":2}', "repeated key"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "NaN"),
        (b'"\xff"', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('"a"'.encode("utf-16"), "not"),
        (b"1e99999999999999999999", "out of range"),
        (b'"a\nb"', "not JSON"),
    ],
)
def test_json_that_two_readers_could_disagree_on_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        load(body)


def test_an_account_is_read() -> None:
    account = parse_account(json.dumps(ACCOUNT).encode(), is_default=True)
    assert (account.id, account.name, account.mode) == (ACCOUNT["id"], "ACME", "live")
    assert (account.scope, account.currency, account.beneficiary) == ("account", "USD", "ACME Inc")
    assert account.is_default


def test_a_malformed_account_is_left_out_with_a_reason() -> None:
    body = page(
        [
            ACCOUNT,
            ACCOUNT | {"id": "a/b"},
            ACCOUNT | {"type": None},
            5,
            ACCOUNT | {"name": "secret", "beneficiary": 7},
        ]
    )
    read = parse_account_page(body)
    assert [account.id for account in read.accounts] == [ACCOUNT["id"]]
    assert len(read.skipped) == 4
    assert not any("secret" in reason for reason in read.skipped)
    assert len(read.references) == 3  # three rows share one id


# How fast a busy machine makes examples up says nothing about the code.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@UNTIMED
@given(st.dictionaries(st.sampled_from([*ORDER, "new"]), JSON))
def test_any_row_is_an_order_or_rejected_and_can_be_kept(changes: dict[str, Any]) -> None:
    read = order(**changes)
    if isinstance(read, Order):
        json.dumps(read.document, ensure_ascii=False).encode()
    else:
        assert read.reference.isprintable()
        assert 0 < len(read.reference) <= 80
        assert len(read.document.encode()) <= 4096


@UNTIMED
@given(st.binary())
def test_any_bytes_are_a_page_or_refused(body: bytes) -> None:
    with pytest.raises(PayloadError):
        parse_order_page(body)
