"""What became of requests, counted by endpoint and outcome; ids and keys are no part of either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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

OK: Final = "ok"
_OUTCOMES: Final = {
    Unreachable: "unreachable",
    RateLimited: "rate_limited",
    ServerFault: "server_fault",
    UnexpectedAnswer: "unexpected_answer",
    EdgeBlocked: "edge_blocked",
    Redirected: "redirected",
    KeyRefused: "key_refused",
    AccountRefused: "account_refused",
    NotFound: "not_found",
    RequestRefused: "request_refused",
}
_WORDS: Final = {
    "",
    "accounts",
    "by-estimate",
    "by-idempotency-key",
    "by-mass",
    "by-value",
    "certificate",
    "client",
    "me",
    "orders",
    "quote",
    "rotate-secret",
    "webhooks",
}


class RequestCounts(Counter[tuple[str, str]]):
    """Counts by endpoint and outcome, such as ``("GET /orders/{}", "not_found")``."""

    @contextmanager
    def counting(self, method: str, path: str) -> Iterator[None]:
        """Count the request that the block sends by how the block ends."""
        try:
            yield
        except LuneError as error:
            # Turned away by a key that was refused before, nothing was sent.
            if not (isinstance(error, KeyRefused) and error.status is None):
                self[endpoint(method, path), _outcome(error)] += 1
            raise
        self[endpoint(method, path), OK] += 1


def endpoint(method: str, path: str) -> str:
    """Return the method and a path below the base address, without ids."""
    return f"{method} " + "/".join(part if part in _WORDS else "{}" for part in path.split("/"))


def _outcome(error: LuneError) -> str:
    return next((word for kind, word in _OUTCOMES.items() if isinstance(error, kind)), "other")
