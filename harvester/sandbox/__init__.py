"""A local Lune: the orders part of its API, with a fast clock and faults on demand.

It is written from Lune's published schema and guides, knows nothing of the harvester, and so
stands in for the service in tests, in the demo, and for anyone who wants to try ``curl``::

    async with Sandbox(SandboxOptions(orders=40, speed=8640)) as sandbox:
        print(sandbox.base_url, sandbox.key)

How it is made: a :mod:`clock` runs simulated time; :mod:`lives` says when each order changes
its status; :mod:`catalogue` and :mod:`pricing` say what it costs; :mod:`world` keeps accounts
and orders and :mod:`population` fills it; :mod:`documents`, :mod:`certificates` and :mod:`pdf`
turn them into what is served; :mod:`intake` reads what is asked; :mod:`gate` decides who may
ask; :mod:`faults` lists what can go wrong and :mod:`mischief` makes it happen; :mod:`routes`
and :mod:`control` are the endpoints; :mod:`webhooks` are set up and :mod:`announcing` pushes
events to them; :mod:`server` binds it all together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harvester.sandbox.faults import KINDS, Fault, parse_fault
from harvester.sandbox.options import SandboxOptions

if TYPE_CHECKING:
    from harvester.sandbox.server import Sandbox

__all__ = ["KINDS", "Fault", "Sandbox", "SandboxOptions", "parse_fault"]


def __getattr__(name: str) -> object:
    """Import the server only when it is wanted: aiohttp would slow ``--help`` down."""
    if name == "Sandbox":
        from harvester.sandbox.server import Sandbox

        return Sandbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
