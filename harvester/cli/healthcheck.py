"""``healthcheck``: ask the running daemon whether it is alive and ready, for containers.

With the standard library's client: it runs every half minute, and to import aiohttp would take
most of its time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.exits import UNFINISHED
from harvester.cli.invocation import Invocation, command
from harvester.cli.output import as_json, print_fields, print_json

if TYPE_CHECKING:
    from harvester.config.settings import Settings

_TIMEOUT = 5.0
_LARGEST = 2**16
_PATHS = {"live": "/healthz", "ready": "/readyz"}
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not bound to


@command("healthcheck", "Ask the daemon whether it is alive and ready.")
@click.option("--live", "only", flag_value="live", help="Only whether it makes progress.")
@click.option("--ready", "only", flag_value="ready", help="Only whether it can do its work.")
@as_json
def healthcheck(invocation: Invocation, only: str | None, json_output: bool) -> None:
    """Ask the running daemon over its listener, or its local socket when it has none.

    Exits 0 when all is well and 3 when something is not or nobody answers.
    """
    questions = tuple(_PATHS) if only is None else (only,)
    answers = _ask(invocation.settings, questions)
    fine = all(answer.get("ok") is True for answer in answers.values())
    if json_output:
        print_json({"ok": fine, **answers})
    else:
        for question, answer in answers.items():
            print_fields([(question, "yes" if answer.get("ok") is True else "no")])
            print_fields(
                (name, check["cause"])
                for name, check in answer.get("checks", {}).items()
                if not check["ok"]
            )
    if not fine:
        sys.exit(UNFINISHED)


def _ask(settings: Settings, questions: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    from harvester.domain.errors import ConfigurationError
    from harvester.web.local_socket import SocketConnection, socket_path

    address, ledger = settings.http.address, settings.database.path
    connect: Callable[[], HTTPConnection]
    if address is not None and address.port:
        host = _ANYWHERE.get(address.host, address.host)
        connect = partial(HTTPConnection, host, address.port, timeout=_TIMEOUT)
    elif socket_path(ledger).is_socket():
        connect = partial(SocketConnection, ledger, _TIMEOUT)
    else:
        raise ConfigurationError(
            f"http.listen names no address to ask, and there is no socket {socket_path(ledger)}"
        )
    return {question: _answer(connect, _PATHS[question]) for question in questions}


def _answer(connect: Callable[[], HTTPConnection], path: str) -> dict[str, Any]:
    from harvester.web.local_socket import NoDaemonError

    try:
        with closing(connect()) as connection:
            connection.request("GET", path)
            answer = json.loads(connection.getresponse().read(_LARGEST))
    except NoDaemonError:
        return _no_answer("no daemon is running")
    except TimeoutError:
        return _no_answer(f"the daemon has not answered for {_TIMEOUT:g} s")
    except (OSError, HTTPException, ValueError) as error:
        return _no_answer(f"no answer ({type(error).__name__})")
    return answer if isinstance(answer, dict) and "checks" in answer else _no_answer("not ours")


def _no_answer(cause: str) -> dict[str, Any]:
    return {"ok": False, "checks": {"daemon": {"ok": False, "cause": cause}}}
