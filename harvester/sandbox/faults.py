"""What can go wrong on demand: the one table of faults, their spelling, and which are active.

A fault is written ``NAME[=ARG][,share=S][,times=N]``: it hits the share ``S`` (0 to 1) of the
requests or orders it concerns, ``N`` times in all. How each is done is in :mod:`mischief`.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: what it does, what its argument means, and the share it hits unasked.

    ``argument`` is empty where the fault takes none; ``check`` raises ``ValueError`` for a
    wrong one.
    """

    meaning: str
    argument: str = ""
    check: Callable[[str], object] = str
    default: str | None = None
    share: float = 1.0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError
    return seconds


def _server_error(text: str) -> int:
    status = int(text)
    if not 500 <= status <= 599:
        raise ValueError
    return status


def _url(text: str) -> str:
    if urlsplit(text).scheme not in ("http", "https"):
        raise ValueError
    return text


def _junk(text: str) -> str:
    if text not in ("junk", "cut", "empty"):
        raise ValueError
    return text


_ELSEWHERE = "https://elsewhere.invalid/"

KINDS: Mapping[str, Kind] = {
    # Any request.
    "slow": Kind("answers late", "SECONDS", _seconds, "2"),
    "hang": Kind("never answers"),
    "reset": Kind("cuts the connection in the middle of an answer's body"),
    "redirect": Kind("302 to another host", "URL", _url, _ELSEWHERE),
    "rate-limit": Kind("429, with Retry-After if SECONDS are given", "SECONDS", _seconds),
    "server-errors": Kind(
        "STATUS, else 500 without body or 502, with HTML from the edge",
        "STATUS",
        _server_error,
        share=0.2,
    ),
    "edge-block": Kind("403 with a challenge page from the edge"),
    "not-json": Kind("200 with a web page instead of JSON"),
    "revoked-key": Kind("401 for the key"),
    "suspended-account": Kind("403 for one account, the default one unless given", "ID"),
    # Orders and listings.
    "backward": Kind("orders now and then show the status before", share=0.1),
    "unknown-status": Kind("orders have an undocumented status", "STATUS", str, "settling", 0.1),
    "missing-order": Kind("404 for orders that are listed", share=0.1),
    "foreign-url": Kind(
        "certificate URLs lead to another host", "URL", _url, _ELSEWHERE + "certificate.pdf"
    ),
    "malformed-order": Kind("one order of each page is broken, each time in another way"),
    "hostile-ids": Kind("one order of each page has an id made to do harm"),
    "null-cursor": Kind("pages say that more follow, without a cursor"),
    "strict-cursor": Kind("400 for a cursor that is an order's id instead of one served before"),
    "repeat-cursor": Kind("pages say that more follow, with the cursor that was sent"),
    # Certificates.
    "truncate": Kind("certificates end before their Content-Length"),
    "html-certificate": Kind("200 with a web page instead of a PDF"),
    "not-pdf": Kind("application/pdf with other bytes: junk, cut or empty", "HOW", _junk, "junk"),
    "certificate-missing": Kind(
        "404 although complete, for ever or for simulated SECONDS", "SECONDS", _seconds
    ),
    "certificate-changes": Kind("each download differs from the one before"),
    # Webhooks.
    "late-events": Kind("events are pushed SECONDS late", "SECONDS", _seconds, "2"),
    "repeated-events": Kind("events are pushed again after they were taken", share=0.5),
    "disordered-events": Kind("the events of a push are in reverse order"),
    "stale-events": Kind("events are signed as SECONDS ago", "SECONDS", _seconds, "3600"),
    "lost-events": Kind("events are never pushed"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as it was asked for. ``times`` None means without end."""

    name: str
    arg: str | None
    share: float
    times: int | None = None

    def __str__(self) -> str:
        arg = "" if self.arg is None else f"={self.arg}"
        times = "" if self.times is None else f",times={self.times}"
        return f"{self.name}{arg},share={self.share:g}{times}"


def parse_fault(text: str) -> Fault:
    """Read ``NAME[=ARG][,share=S][,times=N]``. Raises ``ValueError`` with the rule."""
    head, *settings = text.split(",")
    name, _, arg = head.partition("=")
    fields: dict[str, Any] = {"name": name}
    if arg:
        fields["arg"] = arg
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in ("share", "times") or key in fields:
            raise ValueError(f"a fault is written NAME[=ARG][,share=S][,times=N], not {text!r}")
        fields[key] = value
    return make_fault(**fields)


def make_fault(
    name: object, arg: object = None, share: object = None, times: object = None
) -> Fault:
    """Return a fault made of its parts. Raises ``ValueError`` with the rule."""
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        raise ValueError(f"no fault is called {name!r}; there are {', '.join(KINDS)}")
    if arg is not None and not kind.argument:
        raise ValueError(f"{name} takes no argument")
    text = kind.default if arg is None else str(arg)
    try:
        if text is not None:
            kind.check(text)
    except ValueError:
        raise ValueError(f"{text!r} is no {kind.argument} for {name}") from None
    return Fault(name, text, _share(share, kind.share), _times(times))


def _share(share: object, default: float) -> float:
    try:
        number = default if share is None else float(str(share))
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError("share is between 0 and 1")
    return number


def _times(times: object) -> int | None:
    if times is None:
        return None
    if not str(times).isdecimal() or int(str(times)) < 1:
        raise ValueError("times is 1 or more")
    return int(str(times))


class Faults:
    """The active faults, one of each name, and how often each has hit."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._active: dict[str, Fault] = {}
        self.hits: dict[str, int] = {}

    def add(self, fault: Fault | str) -> Fault:
        """Make a fault active, in place of one of the same name."""
        made = parse_fault(fault) if isinstance(fault, str) else fault
        self._active[made.name] = made
        self.hits[made.name] = 0
        return made

    def remove(self, name: str) -> bool:
        """End a fault; False when it was not active."""
        return self._active.pop(name, None) is not None

    def clear(self) -> None:
        """End every fault."""
        self._active.clear()

    def active(self) -> list[Fault]:
        """Return the active faults; ``times`` says how many hits are left."""
        return list(self._active.values())

    def get(self, name: str) -> Fault | None:
        """Return an active fault without making it hit."""
        return self._active.get(name)

    def strike(self, name: str, subject: str | None = None) -> Fault | None:
        """Return the fault if it hits now, and count the hit.

        With a subject (an order's id) it is always the same share of subjects that is hit.
        """
        fault = self._active.get(name)
        if fault is None or self._draw(name, subject) >= fault.share:
            return None
        self.hits[name] += 1
        if fault.times == 1:
            del self._active[name]
        elif fault.times is not None:
            self._active[name] = replace(fault, times=fault.times - 1)
        return fault

    def coin(self) -> bool:
        """Toss a coin, for what happens only now and then."""
        return self._rng.random() < 0.5

    def _draw(self, name: str, subject: str | None) -> float:
        if subject is None:
            return self._rng.random()
        return zlib.crc32(f"{name} {subject}".encode()) / 2**32
