"""The border where an HTTP answer becomes an error, by status, Lune's code and content type."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from harvester.domain.errors import (
    AccountRefused,
    EdgeBlocked,
    KeyRefused,
    LuneError,
    NotFound,
    RateLimited,
    Redirected,
    RequestRefused,
    ServerFault,
    UnexpectedAnswer,
    Unreachable,
)
from harvester.lune.parsing import PayloadError, load
from harvester.lune.retry import parse_retry_after

Redact = Callable[[str], str]

JSON_TYPES: Final = ("application/json",)
NOTHING: Final[tuple[str, ...]] = ()
"""The types of an answer that need not say anything."""

# Codes of Lune's errors guide that are about one account, whatever the status they come with.
_ACCOUNT_CODES: Final = frozenset(
    {
        "account_scope_incorrect",
        "account_suspended",
        "invalid_selected_account_id",
        "live_account_required",
    }
)
_LONGEST_QUOTE: Final = 200  # bytes
_TOKEN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ResponseTooLarge(UnexpectedAnswer):
    """A body over its cap; the same request would get it again."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer: what was asked, status, the headers that count, the body.

    ``served_at`` is the server's clock in seconds since the epoch, None when it told no date.
    ``path`` is the URL path without its query; ``cf_ray`` and ``lune_version`` are fit to be shown.
    The body of an answer other than 200 may be cut.
    """

    method: str
    path: str
    status: int
    content_type: str
    content_encoding: str
    retry_after: str | None
    cf_ray: str | None
    served_at: float | None
    lune_version: str | None
    body: bytes = field(repr=False)

    def unexpected(self, message: str) -> UnexpectedAnswer:
        """Build the error for an answer that is not what the API serves."""
        return UnexpectedAnswer(
            message, method=self.method, path=self.path, status=self.status, cf_ray=self.cf_ray
        )


def raise_for(answer: Response, types: tuple[str, ...] | None, redact: Redact) -> None:
    """Raise the error an answer stands for; return when it is a good 200.

    A good one is of one of the ``types``, if any are given; with :data:`NOTHING` it may be a 204
    too. ``redact`` hides the key, should the server quote it back.
    """
    if types == NOTHING and answer.status in {200, 204}:
        return
    if answer.status == 200:
        if answer.content_encoding not in {"", "identity"}:
            raise answer.unexpected("an encoding that was not asked for")
        if types is not None and answer.content_type not in types:
            raise answer.unexpected(f"content type is not {types[0]}")
        return
    code, said = _read_error(answer)
    code = printable_token(code, redact)
    kind, message = _classify(answer.status, code)
    if quote := _quote(said, redact):
        message = f"{message}: {quote}"
    raise kind(
        message,
        method=answer.method,
        path=answer.path,
        status=answer.status,
        code=code,
        retry_after=parse_retry_after(answer.retry_after, time.time()),
        cf_ray=answer.cf_ray,
    )


def _classify(status: int, code: str | None) -> tuple[type[LuneError], str]:
    """Return the class of error and what happened, in words. The first rule that fits holds."""
    refused = 400 <= status < 500
    rules: tuple[tuple[bool, type[LuneError], str], ...] = (
        (status == 429, RateLimited, "over the rate limit"),
        (500 <= status < 600, ServerFault, "a fault at Lune"),
        (refused and code in _ACCOUNT_CODES, AccountRefused, "the account is refused"),
        (status == 401, KeyRefused, "the key is refused"),
        (refused and code == "unauthorised", KeyRefused, "the key is refused"),
        (status == 404, NotFound, "not found"),
        (status == 403 and code is None, EdgeBlocked, "refused by something in front of Lune"),
        (status == 408, Unreachable, "timeout at the server"),
        (refused, RequestRefused, "the request is refused"),
        # 304 leads nowhere: it is an answer to a condition that was never set.
        (300 <= status < 400 and status != 304, Redirected, "redirected, and not followed"),
    )
    for fits, kind, message in rules:
        if fits:
            return kind, message
    return UnexpectedAnswer, "a status the API does not serve"


def _read_error(answer: Response) -> tuple[str | None, str]:
    """Return Lune's error code and message, as far as the body has them; HTML is not quoted."""
    try:
        body = load(answer.body)
    except PayloadError:
        is_text = answer.content_type == "text/plain"
        return None, answer.body.decode(errors="replace") if is_text else ""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None, ""
    code, message = error.get("error_code"), error.get("message")
    return (
        code if isinstance(code, str) else None,
        message if isinstance(message, str) else "",
    )


def printable_token(text: str | None, redact: Redact) -> str | None:
    """Return a served code or CF-Ray as it may be shown, None when it is no such thing."""
    if text is None or not _TOKEN.fullmatch(text):
        return None
    return redact(text)


def _quote(text: str, redact: Redact) -> str:
    """Return served text on one printable line of at most 200 bytes, without the key."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    # Hidden before it is cut: half a key is not recognised.
    return redact(line).encode()[:_LONGEST_QUOTE].decode(errors="ignore")
