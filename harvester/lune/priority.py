"""How urgent a request to Lune is, where several want to be sent."""

from __future__ import annotations

from enum import Enum


class Urgency(Enum):
    """The classes a request can be of; the value is a class's share while all of them wait.

    Shares, not ranks: whatever waits, every class goes on.
    """

    WAITED_FOR = 8
    """Somebody waits for the answer: tracking, ordering, asking whether the key is good."""

    DUE = 4
    """Certificates, and orders whose look is due."""

    BACKGROUND = 1
    """Reading listings for what is new."""
