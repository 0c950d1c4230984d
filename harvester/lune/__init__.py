"""Lune's API as a typed asynchronous client.

::

    async with LuneClient("https://api.lune.co/v1", lambda: key, Pacer(12)) as lune:
        account = await lune.fetch_own_account()
        order = await lune.fetch_order_by_key(account, "INV-1")

Errors are those of :mod:`harvester.domain.errors`.
"""

from harvester.lune.client import Caps, LuneClient
from harvester.lune.exchange import Deadlines
from harvester.lune.pacing import Pacer

__all__ = ["Caps", "Deadlines", "LuneClient", "Pacer"]
