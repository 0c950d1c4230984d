"""Hold the archive against the ledger: missing files, changed files, files nobody recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from harvester.archive.directory import DirectoryArchive
from harvester.ledger.certificates import (
    recorded_certificates,
    recorded_paths,
    reopen_certificate,
)
from harvester.ledger.database import Database

_BATCH = 500


class Finding(StrEnum):
    """What is wrong with a file; ``replaced``: it was lost, and a later version is stored."""

    MISSING = "missing"
    CHANGED = "changed"
    UNKNOWN = "unknown"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """A file that is not what the ledger says; an unknown one belongs to no order."""

    finding: Finding
    path: str
    account_id: str | None = None
    order_id: str | None = None
    version: int | None = None


@dataclass(slots=True)
class VerifyReport:
    """What was hashed and what is wrong."""

    checked: int = 0
    bytes: int = 0
    discrepancies: list[Discrepancy] = field(default_factory=list)


async def verify_archive(
    database: Database,
    archive: DirectoryArchive,
    progress: Callable[[VerifyReport], None] = lambda _: None,
) -> VerifyReport:
    """Re-hash every stored certificate and look for files without a row; nothing is changed.

    Raises ``StorageUnavailable``.
    """
    report = VerifyReport()
    async for recorded in recorded_certificates(database):
        expected = recorded.certificate.file
        found = await archive.digest(expected.path)
        report.checked += 1
        report.bytes += expected.size
        if found != expected:
            lost = Finding.MISSING if found is None else Finding.CHANGED
            report.discrepancies.append(
                Discrepancy(
                    Finding.REPLACED if recorded.is_replaced and found is None else lost,
                    expected.path,
                    recorded.account_id,
                    recorded.order_id,
                    recorded.certificate.version,
                )
            )
        progress(report)
    async for path in _unrecorded(database, archive):
        report.discrepancies.append(Discrepancy(Finding.UNKNOWN, path))
    return report


async def reopen(
    database: Database, archive: DirectoryArchive, discrepancies: list[Discrepancy], now: datetime
) -> int:
    """Owe anew what is missing or changed, changed files moved to quarantine; return how many.

    The next collection fetches them. Unknown files are left alone: nobody knows whose they are.
    """
    count = 0
    for one in discrepancies:
        if one.account_id is None or one.order_id is None or one.version is None:
            continue
        if one.finding is Finding.CHANGED:
            await archive.remove_to_quarantine(one.path, "changed after it was stored")
        if one.finding in {Finding.CHANGED, Finding.MISSING}:
            await reopen_certificate(database, one.account_id, one.order_id, one.version, now)
            count += 1
    return count


async def _unrecorded(database: Database, archive: DirectoryArchive) -> AsyncIterator[str]:
    """Yield the paths of files that no certificate is recorded under, in constant memory."""
    batch: list[str] = []
    async for path in archive.paths():
        batch.append(path)
        if len(batch) == _BATCH:
            for unknown in await _without_row(database, batch):
                yield unknown
            batch = []
    for unknown in await _without_row(database, batch):
        yield unknown


async def _without_row(database: Database, paths: list[str]) -> list[str]:
    recorded = await recorded_paths(database, paths)
    return [path for path in paths if path not in recorded]
