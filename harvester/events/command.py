"""Run a command for each event: the event on stdin, the most wanted of it in the environment.

The command sees nothing of the harvester's own environment but where programs and the user's
files are; keys and tokens are not passed on. What it prints goes nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from harvester.domain.deliveries import DeliveryFailure
from harvester.domain.events import CERTIFICATE_PATH, Event, event_text, event_variables

_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class CommandHook:
    """A command, not run by a shell. Exit status 0 within ``timeout`` means accepted.

    ``locate`` turns a certificate's path in the archive into where it lies. A command that takes
    too long is killed with all it started.
    """

    def __init__(
        self, command: Sequence[str], timeout: timedelta, locate: Callable[[str], Path]
    ) -> None:
        self._command = tuple(command)
        self._timeout = timeout
        self._locate = locate

    async def send(self, event: Event) -> DeliveryFailure | None:
        """Run the command, once; None when it exits with 0, else why the event was not accepted."""
        try:
            process = await self._start(event)
        except OSError as error:
            return DeliveryFailure(f"cannot be run: {error.strerror}")
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                await process.communicate(event_text(event).encode() + b"\n")
        except TimeoutError:
            return DeliveryFailure(f"took longer than {self._timeout.total_seconds():g} s")
        finally:
            await _end(process)
        code = process.returncode or 0
        if code < 0:
            return DeliveryFailure(f"ended by signal {-code}")
        return None if code == 0 else DeliveryFailure(f"exit status {code}", of_event=True)

    async def close(self) -> None:
        """Do nothing: a command ends with its event."""

    async def _start(self, event: Event) -> Process:
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=DEVNULL,
                env=_environment(event, self._locate, os.environ),
                start_new_session=True,
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # It may run already. Cancelled as well, only the command itself would be killed.
            with contextlib.suppress(OSError):
                await _end(await starting)
            raise


async def _end(process: Process) -> None:
    """Kill the command and what it started, if it still runs; nothing of it is left behind."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _environment(
    event: Event, locate: Callable[[str], Path], ours: Mapping[str, str]
) -> dict[str, str]:
    found: dict[str, object] = {name: ours.get(name) for name in _PASSED_ON}
    found |= event_variables(event)
    path = event.data.get("path")
    found[CERTIFICATE_PATH] = None if path is None else locate(path)
    # A text the system has no way to pass on is in the JSON only.
    return {name: str(value) for name, value in found.items() if _can_be_passed(value)}


def _can_be_passed(value: object) -> bool:
    if value is None or "\0" in str(value):
        return False
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True
