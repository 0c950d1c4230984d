"""What an order waits for, in words for a person."""

from __future__ import annotations

from harvester.domain.lifecycle import PAID, PLACED, RECEIVED, RETIRING, is_open

_NEXT = {
    RECEIVED: "Lune to process it",
    PLACED: "payment",
    PAID: "credits to be allocated (fractions pool until they make a tonne)",
    RETIRING: "the rest of the credits to be retired",
}


def waits_for(status: str, certificate_state: str | None, reason: str | None) -> str | None:
    """Say what has to happen next for an order; None when nothing has to.

    ``certificate_state`` and ``reason`` are the ledger's: why its certificate could not be had.
    """
    if is_open(status):
        return _NEXT.get(status, "Lune to serve a status that it documents")
    if certificate_state in {"owed", "failed"}:
        return f"its certificate ({reason or 'not asked for yet'})"
    return None
