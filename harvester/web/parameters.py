"""What may stand in a request to the API: its parameters and bodies, read strictly.

A parameter that is not known is refused by name: a filter that was misspelt would silently list
every order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harvester.domain.instants import EPOCH, MICROSECOND, parse_instant
from harvester.domain.orders import CertificateState, OrderFilter, is_identifier
from harvester.ledger.queries import Cursor
from harvester.web.problems import Problem

T = TypeVar("T")

MOST_ORDERS: Final = 500
_ORDERS: Final = 100
_LONGEST_TEXT: Final = 100
_LARGEST_VERSION: Final = 999_999_999
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
_CURSOR: Final = re.compile(r"(-?[0-9]{1,18})\.([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]{1,64})")
_CERTIFICATE: Final = ("none", *map(str, CertificateState))


@dataclass(frozen=True, slots=True)
class OrderQuery:
    """Which orders to list: those in scope, after a cursor, up to a limit."""

    scope: OrderFilter
    after: Cursor | None
    limit: int


class TrackRequest(BaseModel):
    """The body of a request to follow orders."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    references: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=_LONGEST_TEXT)]],
        Field(min_length=1, max_length=100),
    ]
    by_key: bool = False
    account_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z")] | None = None


_MEMBERS: Final = frozenset(TrackRequest.model_fields)


class Parameters:
    """The query of one request; made with the names that are known."""

    def __init__(self, request: web.Request, *known: str) -> None:
        query = request.query
        for name in query:
            if name not in known:
                hint = f"; known are {', '.join(known)}" if known else ""
                raise Problem(400, f"a parameter is not known here{hint}")
            if len(query.getall(name)) > 1:
                raise Problem(400, f"{name}: given twice")
        self._query: Mapping[str, str] = query

    def read(self, name: str, as_what: Callable[[str], T]) -> T | None:
        """Return a parameter as what it should be, None when it is not given."""
        text = self._query.get(name)
        if text is None:
            return None
        try:
            return as_what(text)
        except ValueError as error:
            raise Problem(400, f"{name}: {error}") from None


def order_query(request: web.Request) -> OrderQuery:
    """Read the filters of a listing; ``Problem`` names what is wrong."""
    known = ("status", "account_id", "idempotency_key", "certificate", "since", "until")
    query = Parameters(request, *known, "limit", "after")
    account = query.read("account_id", identifier)
    return OrderQuery(
        scope=OrderFilter(
            accounts=None if account is None else frozenset({account}),
            idempotency_key=query.read("idempotency_key", _text),
            status=query.read("status", _text),
            certificate=query.read("certificate", _certificate),
            since=query.read("since", parse_instant),
            until=query.read("until", lambda text: parse_instant(text, end=True)),
        ),
        after=query.read("after", _cursor),
        limit=query.read("limit", _limit) or _ORDERS,
    )


def track_request(body: bytes) -> TrackRequest:
    """Read the body of a request to follow orders; ``Problem`` names what is wrong."""
    try:
        return TrackRequest.model_validate_json(body)
    except ValidationError as error:
        first: Any = error.errors(include_input=False, include_url=False)[0]
        # An unknown member is not quoted: it may be anything.
        known = [str(part) for part in first["loc"] if isinstance(part, int) or part in _MEMBERS]
        member = ".".join(known)
        raise Problem(400, f"{member or 'the body'}: {first['msg']}") from None


def identifier(text: str) -> str:
    """Read an id; ``ValueError`` for what no account or order can have as one."""
    if not is_identifier(text):
        raise ValueError("an id has 1 to 64 letters, digits, - and _")
    return text


def version(text: str) -> int:
    """Read the number of a certificate's version."""
    return _number(text, _LARGEST_VERSION)


def _limit(text: str) -> int:
    return _number(text, MOST_ORDERS)


def _number(text: str, most: int) -> int:
    if _NUMBER.fullmatch(text) is None or int(text) > most:
        raise ValueError(f"should be 1 to {most}")
    return int(text)


def _text(text: str) -> str:
    if not 0 < len(text) <= _LONGEST_TEXT:
        raise ValueError(f"has 1 to {_LONGEST_TEXT} characters")
    text.encode()  # half a character is no text
    return text


def _certificate(text: str) -> str:
    if text not in _CERTIFICATE:
        raise ValueError(f"is one of {', '.join(_CERTIFICATE)}")
    return text


def cursor_text(cursor: Cursor) -> str:
    """Write a cursor as a parameter."""
    microseconds = (cursor.created_at - EPOCH) // MICROSECOND
    return f"{microseconds}.{cursor.account_id}.{cursor.order_id}"


def _cursor(text: str) -> Cursor:
    parts = _CURSOR.fullmatch(text)
    if parts is None:
        raise ValueError("take it from next, as it is")
    try:
        created_at = EPOCH + int(parts[1]) * MICROSECOND
    except OverflowError:
        raise ValueError("take it from next, as it is") from None
    return Cursor(created_at, parts[2], parts[3])
