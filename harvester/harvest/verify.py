"""Hold the archive against the ledger: missing files, changed files, files nobody filed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from harvester.domain.ledger import Ledger
from harvester.domain.ports import Archive

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
    key: str
    account_id: str | None = None
    order_id: str | None = None
    version: int | None = None


@dataclass(slots=True)
class VerifyReport:
    """What was hashed and what is wrong."""

    checked: int = 0
    bytes: int = 0
    discrepancies: list[Discrepancy] = field(default_factory=list)


class Verifier:
    """Re-hashes every stored certificate and looks for files without a row."""

    def __init__(self, ledger: Ledger, archive: Archive) -> None:
        self._ledger = ledger
        self._archive = archive

    async def run(self, progress: Callable[[VerifyReport], None] = lambda _: None) -> VerifyReport:
        """Hash every stored file; nothing is changed. Raises ``StorageUnavailable``."""
        report = VerifyReport()
        async for filed in self._ledger.stored_certificates():
            expected = filed.certificate.file
            found = await self._archive.digest(expected.key)
            report.checked += 1
            report.bytes += expected.size
            if found != expected:
                lost = Finding.MISSING if found is None else Finding.CHANGED
                report.discrepancies.append(
                    Discrepancy(
                        Finding.REPLACED if filed.is_replaced and found is None else lost,
                        expected.key,
                        filed.account_id,
                        filed.order_id,
                        filed.certificate.version,
                    )
                )
            progress(report)
        report.discrepancies += [Discrepancy(Finding.UNKNOWN, key) async for key in self._unknown()]
        return report

    async def _unknown(self) -> AsyncIterator[str]:
        batch: list[str] = []
        async for key in self._archive.keys():
            batch.append(key)
            if len(batch) == _BATCH:
                for unknown in await self._without_row(batch):
                    yield unknown
                batch = []
        for unknown in await self._without_row(batch):
            yield unknown

    async def _without_row(self, keys: list[str]) -> list[str]:
        known = await self._ledger.known_files(keys)
        return [key for key in keys if key not in known]


async def reopen(
    ledger: Ledger, archive: Archive, discrepancies: list[Discrepancy], now: datetime
) -> int:
    """Owe anew what is missing or changed, changed files moved to quarantine; return how many.

    The next collection fetches them. Unknown files are left alone: nobody knows whose they are.
    """
    count = 0
    for one in discrepancies:
        if one.account_id is None or one.order_id is None or one.version is None:
            continue
        if one.finding is Finding.CHANGED:
            await archive.remove_to_quarantine(one.key, "changed after it was stored")
        if one.finding in {Finding.CHANGED, Finding.MISSING}:
            await ledger.reopen_certificate(one.account_id, one.order_id, one.version, now)
            count += 1
    return count
