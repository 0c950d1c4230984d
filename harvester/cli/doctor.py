"""``doctor``: is it set up; line by line what is right, and what to do about what is not."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from harvester.cli.exits import CONFIGURATION, UNFINISHED, exit_code_of
from harvester.cli.invocation import Invocation, command
from harvester.cli.output import as_json, print_json, printable
from harvester.cli.subscription import judge_webhooks

if TYPE_CHECKING:
    from harvester.config.settings import Settings
    from harvester.domain.orders import Account
    from harvester.lune import LuneClient

Level = Literal["ok", "warning", "fail"]
_LARGEST_SKEW = 60.0
_LITTLE_SPACE = 256 * 1024 * 1024
_SAFE_SQLITE = (3, 51, 3)


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, and what to do when it is not right."""

    subject: str
    level: Level
    text: str
    exit_code: int = 0


@command("doctor", "Check the set-up, line by line.")
@as_json
def doctor(invocation: Invocation, json_output: bool) -> None:
    """Check the set-up: configuration, key, accounts, ledger, archive, clock, webhook.

    Exits 0 when all is well or only warnings were found, else with the code of the first failure.
    """
    invocation.configure_logs("error")

    async def work() -> list[Check]:
        found = []
        async for check in _checks(invocation):
            found.append(check)
            if not json_output:
                _print(check)
        return found

    checks = asyncio.run(work())
    if json_output:
        print_json([asdict(check) for check in checks])
    code = next((check.exit_code for check in checks if check.level == "fail"), 0)
    if code:
        sys.exit(code)


def _print(check: Check) -> None:
    colour = {"ok": "green", "warning": "yellow", "fail": "red"}[check.level]
    level = click.style(f"{check.level:7}", fg=colour)
    click.echo(f"{level} {check.subject}: {printable(check.text)}")


async def _checks(invocation: Invocation) -> AsyncIterator[Check]:
    where = invocation.config_path
    settings = invocation.settings  # a wrong one ends here: exit 78, every wrong key by name
    yield Check(
        "configuration", "ok", f"{where}" if where else "none found: defaults and environment"
    )
    key = _secret_file(settings)
    yield key
    if key.level != "fail":
        async for check in _lune(settings):
            yield check
    yield await _ledger(settings)
    yield _sqlite()
    async for check in _archive(settings):
        yield check
    level, text = await judge_webhooks(settings)
    yield Check("webhook", level, text, CONFIGURATION)


def _secret_file(settings: Settings) -> Check:
    from harvester.domain.errors import ConfigurationError

    try:
        settings.api_key.read()
    except ConfigurationError as error:
        return Check("key", "fail", str(error), CONFIGURATION)
    place = settings.api_key.file() or "from the configuration or environment"
    return Check("key", "ok", f"{place}")


async def _lune(settings: Settings) -> AsyncIterator[Check]:
    from harvester.app import make_client
    from harvester.domain.errors import HarvesterError, KeyRefused

    try:
        async with make_client(settings) as lune:
            own = await lune.fetch_own_account()
            yield Check("Lune", "ok", f"{settings.lune.base_url} accepts the {own.mode} key")
            mode = own.mode
            if lune.clock_offset is not None:
                yield _clock(lune.clock_offset)
            if "all" in settings.lune.accounts:
                count = len(await lune.fetch_accounts())
                yield Check("accounts", "ok", f"all: {count} reached by the key")
            else:
                for wanted in settings.lune.accounts:
                    yield await _account(lune, own, wanted)
    except KeyRefused as error:
        place = settings.api_key.file() or "the configuration or environment"
        text = f"{error}; put a good key in place of the one from {place}"
        yield Check("Lune", "fail", text, exit_code_of(error))
        return
    except HarvesterError as error:
        text = f"{settings.lune.base_url}: {error}; is lune.base_url right, and the network up?"
        yield Check("Lune", "fail", text, exit_code_of(error))
        return
    yield await _mode(settings, mode)


async def _account(lune: LuneClient, own: Account, wanted: str) -> Check:
    from harvester.domain.errors import AccountRefused

    try:
        account = own if wanted == "default" else await lune.fetch_account(wanted)
    except AccountRefused as error:
        text = f"{wanted}: {error}; mend it at Lune or take it out of lune.accounts"
        return Check("accounts", "fail", text, exit_code_of(error))
    return Check("accounts", "ok", f"{wanted}: {account.name} ({account.id})")


async def _mode(settings: Settings, mode: str) -> Check:
    from harvester.domain.errors import HarvesterError
    from harvester.ledger import migrate
    from harvester.ledger.accounts import recorded_modes
    from harvester.ledger.database import open_reader

    try:
        if migrate.current(settings.database.path) != migrate.head():
            return Check("mode", "ok", f"{mode}; the ledger holds no orders yet")
        async with open_reader(settings.database.path) as database:
            seen = await recorded_modes(database)
    except HarvesterError:
        return Check("mode", "warning", f"{mode}; the ledger, below, cannot be asked for its own")
    if seen and mode not in seen:
        text = f"the key is a {mode} key, but the ledger holds {'/'.join(sorted(seen))} orders"
        return Check("mode", "fail", f"{text}; use the other key or another ledger", CONFIGURATION)
    return Check("mode", "ok", mode)


def _clock(offset: float) -> Check:
    text = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} Lune's"
    if abs(offset) > _LARGEST_SKEW:
        return Check("clock", "warning", f"{text}; recorded times are off: set up time sync")
    return Check("clock", "ok", text)


async def _ledger(settings: Settings) -> Check:
    from harvester.domain.errors import HarvesterError
    from harvester.ledger import migrate
    from harvester.ledger.location import refuse_shared_disk
    from harvester.ledger.lock import holder_of

    path = settings.database.path
    try:
        refuse_shared_disk(path)
        revision = migrate.current(path)
        if revision is None:
            return await _future_ledger(path, settings.storage.path)
        if revision != migrate.head():
            migrate.require_current(path)
        migrate.check_integrity(path)
    except HarvesterError as error:
        return Check("ledger", "fail", str(error), exit_code_of(error))
    holder = holder_of(path)
    return Check("ledger", "ok", f"{path}: schema {revision}, held by {holder or 'nobody'}")


async def _future_ledger(path: Path, archive: Path) -> Check:
    problem = _cannot_be_made(path)
    if problem is not None:
        return Check("ledger", "fail", problem, CONFIGURATION)
    if await _holds_certificates(archive):
        text = (
            f"{path}: none, but {archive} holds certificates; if it was lost, put a `db backup` "
            "back, or let `harvester run --drain` build it anew from Lune and those files"
        )
        return Check("ledger", "warning", text)
    return Check("ledger", "ok", f"{path}: none yet; `harvester run` makes it")


async def _holds_certificates(path: Path) -> bool:
    from harvester.archive.directory import DirectoryArchive
    from harvester.domain.errors import StorageUnavailable

    archive = DirectoryArchive(path)
    try:
        async for _ in archive.paths():
            return True
    except StorageUnavailable:
        pass  # there is none yet; what is wrong with one that is there has a line of its own
    finally:
        await archive.close()
    return False


def _sqlite() -> Check:
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < _SAFE_SQLITE:
        safe = ".".join(map(str, _SAFE_SQLITE))
        text = f"{version}; below {safe} keep every other program from writing the ledger"
        return Check("SQLite", "ok", text)
    return Check("SQLite", "ok", version)


async def _future_archive(settings: Settings) -> Check:
    path = settings.storage.path
    if await _has_stored(settings):
        text = f"{path}: gone, and certificates were stored there; mount its disk or restore it"
        return Check("archive", "fail", text, UNFINISHED)
    problem = _cannot_be_made(path)
    if problem is not None:
        return Check("archive", "fail", problem, CONFIGURATION)
    return Check("archive", "ok", f"{path}: none yet; `harvester run` makes it")


async def _has_stored(settings: Settings) -> bool:
    """Tell whether certificates were ever stored; of a ledger that cannot be asked, take it so."""
    from harvester.domain.errors import HarvesterError
    from harvester.ledger import migrate
    from harvester.ledger.certificates import has_certificates
    from harvester.ledger.database import open_reader

    try:
        if migrate.current(settings.database.path) != migrate.head():
            return False
        async with open_reader(settings.database.path) as database:
            return await has_certificates(database)
    except HarvesterError:
        return True


def _cannot_be_made(path: Path) -> str | None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        return f"{path}: cannot be made, {above} is not a folder"
    if not os.access(above, os.W_OK | os.X_OK):
        return f"{path}: cannot be made, {above} is not writable by this user"
    return None


async def _archive(settings: Settings) -> AsyncIterator[Check]:
    from harvester.archive.directory import DirectoryArchive
    from harvester.domain.errors import HarvesterError

    archive = DirectoryArchive(settings.storage.path)
    try:
        if not settings.storage.path.exists():
            yield await _future_archive(settings)
            return
        await archive.prepare(create=not await _has_stored(settings))
        await archive.probe()
        yield Check("archive", "ok", f"{settings.storage.path}: takes files durably")
        free = await archive.free_bytes()
        level: Level = "ok" if free > _LITTLE_SPACE else "warning"
        yield Check("space", level, f"{free // (1024 * 1024)} MiB free")
    except HarvesterError as error:
        yield Check("archive", "fail", str(error), exit_code_of(error))
    finally:
        await archive.close()
