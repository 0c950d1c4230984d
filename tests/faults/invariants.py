"""What holds after any fault: the ledger, the archive, the log and the server's record agree.

One function, :func:`check_invariants`, called at the end of every fault test and by every
campaign. It reads with SQLite, hashes and text alone, so that it cannot share a mistake with the
program; what concerns a user's data is in ``harvester verify`` too, and that is asked as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import time
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from harvester.config.load import load
from harvester.config.settings import Settings
from harvester.domain.orders import is_identifier
from harvester.ledger.audit import contradictions
from harvester.ledger.database import Database
from tests.canaries import encodings
from tests.faults.proxy import Proxy
from tests.faults.scene import PRIVATE, Scene

_ENDED = ("complete", "cancelled", "failed")
_OUTSIDE = {".incoming", "quarantine"}
_LONGEST_LINE = 8192
_SLACK_S = 60.0


class BrokenError(AssertionError):
    """Invariants that do not hold, one a line."""


async def check_invariants(scene: Scene) -> None:
    """Raise :class:`BrokenError` naming every invariant that does not hold after a fault."""
    settings = load(scene.home.config)
    ledger, archive = settings.database.path, settings.storage.path
    lines = [*_log(scene.log_text()), *_secrets(scene), *_rate(scene.proxy, settings)]
    if ledger.exists():
        with _copy_of(ledger) as copy, closing(sqlite3.connect(copy)) as connection:
            lines += _ledger(connection, settings)
            lines += _archive(connection, archive, scene)
            lines += _record(connection, scene.proxy, clean=scene.clean_end)
            if _is_made(connection):
                database = Database(copy, readonly=True)
                try:
                    lines += [f"I7 verify: {line}" for line in await contradictions(database)]
                finally:
                    await database.close()
    broken = [line for line in lines if line.split(" ", 1)[0] not in scene.excused]
    if broken:
        raise BrokenError("\n".join(broken))


@contextmanager
def _copy_of(ledger: Path) -> Iterator[Path]:
    """Copy the files as a crash leaves them, write-ahead log included: the original stays so."""
    with TemporaryDirectory(prefix="harvester-invariants-") as folder:
        copy = Path(folder) / "ledger.db"
        for suffix in ("", "-wal"):
            part = Path(f"{ledger}{suffix}")
            if part.exists():
                shutil.copyfile(part, f"{copy}{suffix}")
        yield copy


def _is_made(connection: sqlite3.Connection) -> bool:
    """Tell whether it has its tables: it may have been killed before the first migration."""
    query = "SELECT 1 FROM sqlite_master WHERE name = 'transitions'"
    return connection.execute(query).fetchone() is not None


def _ledger(connection: sqlite3.Connection, settings: Settings) -> Iterator[str]:
    """I6 whole; I7 chains; I11 every open order is checked again in time."""
    for (answer,) in connection.execute("PRAGMA integrity_check"):
        if answer != "ok":
            yield f"I6 the ledger is damaged: {answer}"
    for row in connection.execute("PRAGMA foreign_key_check"):
        yield f"I6 a row without the one it belongs to: {row}"
    if not _is_made(connection):
        return
    chains: defaultdict[tuple[str, str], list[tuple[int, str | None, str]]] = defaultdict(list)
    for account, order, *link in connection.execute(
        "SELECT account_id, order_id, seq, from_status, to_status FROM history ORDER BY seq"
    ):
        chains[account, order].append((link[0], link[1], link[2]))
    latest = time.time() + settings.harvest.longest_interval.total_seconds() + _SLACK_S
    for account, order, status, due in connection.execute(
        "SELECT accounts.id, orders.id, status, next_check_at"
        " FROM orders JOIN accounts ON accounts.key = account_key"
    ):
        before: str | None = None
        for number, (seq, start, end) in enumerate(chains.pop((account, order), []), 1):
            if seq != number or start != before or start == end:
                yield f"I7 order {order}: transition {seq} is {start} -> {end} after {before}"
            before = end
        if before != status:
            yield f"I7 order {order} is {status}, its transitions end at {before}"
        if status not in _ENDED and (due is None or due / 1e6 > latest):
            yield f"I11 order {order} is {status} and is checked at {due}"
    for account, order in chains:
        yield f"I7 transitions of order {order} of {account}, which is not there"


def _archive(connection: sqlite3.Connection, root: Path, scene: Scene) -> Iterator[str]:
    """I1 whole files with a row; I2 rows with a file; I3 never changed; I5 nothing left over."""
    rows = yield from _rows(connection)
    files = dict(_files(root))
    for name, path in files.items():
        data = path.read_bytes()
        sha256, info = hashlib.sha256(data).hexdigest(), path.lstat()
        if b"%PDF-" not in data[:1024] or b"%%EOF" not in data[-1024:]:
            yield f"I1 {name} is not a whole PDF: {len(data)} bytes"
        if scene.stored.setdefault(name, (info.st_ino, sha256)) != (info.st_ino, sha256):
            yield f"I3 {name} changed after it was stored"
        if name in rows and rows[name] != (sha256, len(data)):
            yield f"I2 {name} is not what the ledger says"
        if name not in rows and scene.clean_end:
            yield f"I1 {name} has no row"
        if stat.S_IMODE(info.st_mode) != 0o600 or info.st_uid != os.geteuid():
            yield f"I2 {name} has mode {stat.S_IMODE(info.st_mode):o}, owner {info.st_uid}"
        if info.st_nlink != 1 and scene.clean_end:
            yield f"I2 {name} has {info.st_nlink} names"
    for name in rows.keys() - files.keys():
        yield f"I2 {name} has a row and no file"
    left = sorted(path.name for path in (root / ".incoming").glob("*"))
    if left and scene.clean_end:
        yield f"I5 {len(left)} temporaries are left: {left[:3]}"


def _rows(connection: sqlite3.Connection) -> Generator[str, None, dict[str, tuple[str, int]]]:
    """Return SHA-256 and size by name of what should be there; I9 each name is recorded once."""
    if not _is_made(connection):
        return {}
    everything = Counter(name for (name,) in connection.execute("SELECT path FROM files"))
    for name, times in everything.items():
        if times > 1:
            yield f"I9 {times} rows for {name}"
    query = "SELECT path, sha256, size FROM files WHERE lost_at IS NULL"
    return {name: (sha256, size) for name, sha256, size in connection.execute(query)}


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if path.is_file() and name.parts[0] not in _OUTSIDE and not name.name.startswith("."):
            yield name.as_posix(), path


def _record(connection: sqlite3.Connection, proxy: Proxy, *, clean: bool) -> Iterator[str]:
    """I7, I10 every status was served; I11 every listed order is known; I12 under its account."""
    if not _is_made(connection):
        return
    served = {(one.account_id, one.order_id, one.status) for one in proxy.served}
    for account, order, status in connection.execute(
        "SELECT account_id, order_id, to_status FROM history"
    ):
        if (account, order, status) not in served:
            yield f"I7 order {order} went to {status}, which was not served"
    recorded = (
        "SELECT accounts.id, orders.id FROM orders JOIN accounts ON accounts.key = account_key"
    )
    known = set(connection.execute(recorded))
    rejected = connection.execute("SELECT account_id FROM rejected_orders")
    has_rejected = {account for (account,) in rejected}
    for account, order in known - proxy.listed:
        yield f"I12 order {order} is under {account}, where it was not served"
    for account, order in proxy.listed - known if clean else ():
        if is_identifier(order) or account not in has_rejected:
            yield f"I11 order {order!r} of {account} was served and is forgotten"


def _rate(proxy: Proxy, settings: Settings) -> Iterator[str]:
    """I13 no second holds more requests than the limit allows, as the server counts."""
    window: deque[float] = deque()
    most = 0
    for at in sorted(seen.at for seen in proxy.requests):
        window.append(at)
        while window[0] <= at - 1.0:
            window.popleft()
        most = max(most, len(window))
    if most > settings.lune.rate_limit:
        yield f"I13 {most} requests within a second, {settings.lune.rate_limit:g} allowed"


def _log(text: str) -> Iterator[str]:
    """I19 each line is whole JSON or a command's plain words, short, without private data."""
    for line in text.split("\n"):
        if len(line.encode()) > _LONGEST_LINE:
            yield f"I19 a log line of {len(line)} characters: {line[:80]}"
        if any(not (char.isprintable() or char == "\t") for char in line):
            yield f"I19 a control character in a log line: {line[:200]!a}"
        if line.startswith("{"):
            try:
                json.loads(line)
            except ValueError:
                yield f"I19 a log line that is not JSON: {line[:200]!a}"
    if PRIVATE in text:
        yield "I19 metadata is in the log"


def _secrets(scene: Scene) -> Iterator[str]:
    """I18 no secret is in anything written, in any encoding."""
    forms = {form: secret for secret in scene.secrets for form in encodings(secret)}
    for path in scene.home.folder.rglob("*"):
        if not path.is_file() or path.name in scene.secret_files or path.is_symlink():
            continue
        data = path.read_bytes()
        for form, secret in forms.items():
            if form in data:
                yield f"I18 {path.name} holds the secret {secret[:4]}..."
    targets = "\n".join(seen.target for seen in scene.proxy.requests).encode()
    if any(form in targets for form in forms):
        yield "I18 a secret is in a request's address"
