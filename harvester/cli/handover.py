"""Hand a change to the daemon that holds the ledger, over its local socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harvester.domain import errors
from harvester.domain.errors import HarvesterError, LedgerUnavailable

_PATIENCE = 600
"""Seconds: tracking many orders takes a request each, at the configured rate."""


async def hand_over(ledger: Path, operation: str, body: Any) -> tuple[bool, Any]:
    """Ask the daemon to do something; (False, None) when no daemon listens.

    Its refusals are raised as they were there.
    """
    import aiohttp

    from harvester.web.address import control_path, reachable

    path = control_path(ledger)
    if not path.is_socket():
        return False, None
    with reachable(path) as name:
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        connector = aiohttp.UnixConnector(path=name)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            try:
                async with session.post(f"http://daemon/{operation}", json=body) as answer:
                    result = await answer.json()
                    status = answer.status
            except aiohttp.ClientConnectorError:
                return False, None  # left behind by a daemon that was killed
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise LedgerUnavailable(
                    f"the daemon did not answer ({type(error).__name__}); try again"
                ) from error
    if status != 200:
        raise _as_error(result)
    return True, result


def _as_error(result: Any) -> HarvesterError:
    kind = getattr(errors, str(result.get("error")), None)
    message = str(result.get("message", "the daemon gave no reason"))
    if not (isinstance(kind, type) and issubclass(kind, HarvesterError)):
        return LedgerUnavailable(f"the daemon could not do it: {message}")
    if issubclass(kind, errors.LuneError):
        return kind(message, **result["request"])
    return kind(message)
