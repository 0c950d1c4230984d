"""``healthcheck``: ask the running daemon whether it is alive and ready, for containers."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.context import Context, command
from harvester.cli.exits import UNFINISHED
from harvester.cli.output import as_json, print_fields, print_json

if TYPE_CHECKING:
    import aiohttp

    from harvester.settings import Settings
    from harvester.web.address import Address

_PATIENCE = 5.0
_PATHS = {"live": "/healthz", "ready": "/readyz"}
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


@command("healthcheck", "Ask the daemon whether it is alive and ready.")
@click.option("--live", "only", flag_value="live", help="Only whether it makes progress.")
@click.option("--ready", "only", flag_value="ready", help="Only whether it can do its work.")
@as_json
def healthcheck(context: Context, only: str | None, json_output: bool) -> None:
    """Ask the running daemon over its listener, or its local socket when it has none.

    Exits 0 when all is well and 3 when something is not or nobody answers.
    """
    questions = tuple(_PATHS) if only is None else (only,)
    answers = asyncio.run(_ask(context.settings, questions))
    fine = all(answer.get("ok") is True for answer in answers.values())
    if json_output:
        print_json({"ok": fine, **answers})
    else:
        for question, answer in answers.items():
            print_fields([(question, "yes" if answer.get("ok") is True else "no")])
            print_fields(
                (name, check["why"])
                for name, check in answer.get("checks", {}).items()
                if not check["ok"]
            )
    if not fine:
        sys.exit(UNFINISHED)


async def _ask(settings: Settings, questions: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    import aiohttp

    from harvester.domain.errors import ConfigurationError
    from harvester.web.address import control_path, reachable

    address, socket = settings.http.address, control_path(settings.database.path)
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    async with AsyncExitStack() as opened:
        if address is not None and address.port:
            base, connector = f"http://{_reached(address)}", None
        elif socket.is_socket():
            name = opened.enter_context(reachable(socket))
            base, connector = "http://daemon", aiohttp.UnixConnector(path=name)
        else:
            raise ConfigurationError(
                f"http.listen names no address to ask, and there is no socket {socket}"
            )
        session = await opened.enter_async_context(
            aiohttp.ClientSession(base, connector=connector, timeout=timeout)
        )
        return {question: await _answer(session, _PATHS[question]) for question in questions}


def _reached(address: Address) -> Address:
    """Return where a daemon is reached that listens on every address."""
    return address._replace(host=_ANYWHERE.get(address.host, address.host))


async def _answer(session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    import aiohttp

    try:
        async with session.get(path) as response:
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return _no_answer(f"no answer ({type(error).__name__})")
    return answer if isinstance(answer, dict) and "checks" in answer else _no_answer("not ours")


def _no_answer(why: str) -> dict[str, Any]:
    return {"ok": False, "checks": {"daemon": {"ok": False, "why": why}}}
