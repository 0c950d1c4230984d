"""What a sandbox is started with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

MODES = ("test", "live")
CERTIFICATE_AT = ("retiring", "complete")

FASTEST = 10_000_000
"""Simulated seconds a second; even so it is hours until the year 9999, where dates end."""

Mode = Literal["test", "live"]
CertificateAt = Literal["retiring", "complete"]


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """The size, pace and temper of a sandbox. Raises ``ValueError`` naming the broken rule.

    ``orders`` exist at the start, spread over ``accounts`` and ``client_accounts`` and over all
    statuses. ``speed`` is simulated seconds per second: at 8640 a day passes in ten seconds.
    ``rate_limit`` is requests per second, 0 for no limit. ``certificate_at`` is the status from
    which a certificate is served: Lune's order guide says ``retiring``, its certificate guide
    ``complete``. ``faults`` are written ``NAME[=ARG][,share=S][,times=N]``. The same ``seed``
    gives the same accounts and orders. ``starts_at`` is the simulated instant at the start,
    now unless given.
    """

    orders: int = 40
    accounts: int = 1
    client_accounts: int = 2
    speed: float = 8640.0
    rate_limit: int = 15
    key: str = "sandbox-key"
    mode: Mode = "test"
    seed: int = 1
    certificate_at: CertificateAt = "retiring"
    faults: tuple[str, ...] = ()
    starts_at: datetime | None = None

    def __post_init__(self) -> None:
        for rule, kept in (
            ("orders is 0 or more", self.orders >= 0),
            ("accounts is 1 or more: the key has a default account", self.accounts >= 1),
            ("client_accounts is 0 or more", self.client_accounts >= 0),
            (f"speed is between 0 and {FASTEST}", 0 <= self.speed <= FASTEST),
            ("rate_limit is 0 (none) or more", self.rate_limit >= 0),
            ("key is printable ASCII without spaces", _is_token(self.key)),
            (f"mode is one of {', '.join(MODES)}", self.mode in MODES),
            (
                f"certificate_at is one of {', '.join(CERTIFICATE_AT)}",
                self.certificate_at in CERTIFICATE_AT,
            ),
            (
                "starts_at has a time zone",
                self.starts_at is None or self.starts_at.tzinfo is not None,
            ),
        ):
            if not kept:
                raise ValueError(rule)


def _is_token(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
