"""Lune's API as a typed asynchronous client.

::

    async with LuneClient("https://api.lune.co/v1", lambda: key, RateLimiter(12)) as lune:
        account = await lune.fetch_own_account()
        order = await lune.fetch_order_by_key(account, "INV-1")

To place one, and to settle a doubt about it::

        purchase = by_mass("259.11", "kg", metadata={"invoice": "INV-1"})
        print((await lune.quote(account, purchase)).total_cost)
        order = await lune.place_order(account, purchase, idempotency_key="INV-1")

``place_order`` sends once. After ``Unreachable``, ``ServerFault`` or ``UnexpectedAnswer`` nobody
knows whether Lune took it: ``fetch_order_by_key`` tells, and the same key cannot buy twice.

Errors are those of :mod:`harvester.domain.errors`.
"""

from harvester.domain.purchases import BundleShare, Purchase, Quote, by_estimate, by_mass, by_value
from harvester.lune.client import LuneClient
from harvester.lune.rate_limiter import RateLimiter
from harvester.lune.transport import ClientOptions, Deadlines

__all__ = [
    "BundleShare",
    "ClientOptions",
    "Deadlines",
    "LuneClient",
    "Purchase",
    "Quote",
    "RateLimiter",
    "by_estimate",
    "by_mass",
    "by_value",
]
