"""File certificates in groups: bytes before the row, and one fsync and one commit for many.

A certificate that comes while a group is being written waits for the next group, so groups are as
large as the disk is slow, and a certificate that comes alone waits for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from harvester.archive.directory import DirectoryArchive, NewFile
from harvester.archive.pdf import check_pdf
from harvester.context import Context
from harvester.domain.certificate_names import CertificateNames
from harvester.domain.certificates import Certificate, NewCertificate
from harvester.domain.errors import CertificateRejected, HarvesterError, StorageUnavailable
from harvester.domain.orders import CertificateBody, CertificateKind, StoredFile
from harvester.ledger.certificates import (
    DueCertificate,
    read_certificates,
    record_certificates,
)
from harvester.ledger.database import Database

log = structlog.get_logger()

_MOST_VERSIONS = 1000
_MOST_AT_ONCE = 64


@dataclass(slots=True, eq=False)
class _Item:
    """A certificate on its way: its digest once it is checked, the names it may have, its end.

    A name is a version and its path.
    """

    due: DueCertificate
    body: CertificateBody
    sha256: str = ""
    names: Iterator[tuple[int, str]] | None = None
    name: tuple[int, str] | None = None
    stored: bool = False
    fault: Exception | None = None

    @property
    def ended(self) -> bool:
        return self.stored or self.fault is not None


class Filing:
    """Checks, stores and records certificates."""

    def __init__(
        self,
        database: Database,
        archive: DirectoryArchive,
        names: CertificateNames,
        context: Context,
    ) -> None:
        self._database = database
        self._archive = archive
        self._names = names
        self._clock = context.clock
        self._turn = asyncio.Lock()
        self._waiting: list[_Item] = []

    async def file(self, due: DueCertificate, body: CertificateBody) -> None:
        """Store the bytes under the version they are, or as the next one, and record it.

        Durable when this returns. Raises ``CertificateRejected`` for what is no whole PDF,
        ``StorageUnavailable`` and the ledger's errors. Idempotent.
        """
        item = _Item(due, body)
        self._waiting.append(item)
        while not item.ended:
            async with self._turn:  # whoever gets the turn writes for all who wait
                if not item.ended:
                    await self._write_group()
        if item.fault is not None:
            raise item.fault

    async def already_in_archive(self, dues: Iterable[DueCertificate]) -> set[DueCertificate]:
        """Return those under whose next name a file lies already.

        A crash between a file and its row leaves one, and so does a ledger that was lost.
        """
        paths: dict[str, DueCertificate] = {}
        for due in dues:
            with suppress(Exception):  # this order's own fault, raised when it is filed
                paths[self._path(due, due.newest_version + 1)] = due
        return {paths[path] for path in await self._archive.existing(paths)}

    async def recover(self, due: DueCertificate) -> bool:
        """Record whole files that lie under this order's next names without a row; tell if any."""
        recovered = False
        for version in range(due.newest_version + 1, _MOST_VERSIONS):
            path = self._path(due, version)
            data = await self._archive.read(path)
            if data is None:
                break
            try:
                await asyncio.to_thread(check_pdf, data)
            except CertificateRejected:
                break  # not ours; it is left alone and a free name is found when filing
            file = await self._archive.put(path, data)
            if file is None:
                break
            await self._record([self._new(due, version, file, None)], "certificate recovered")
            recovered = True
        return recovered

    async def reject(self, due: DueCertificate, data: bytes, reason: CertificateRejected) -> None:
        """Keep bytes that are no certificate for inspection, as far as there is room."""
        await self._archive.quarantine(due.order_id, data, str(reason))

    async def probe(self) -> None:
        """Try the archive; ``StorageUnavailable`` says why it takes no files."""
        await self._archive.probe()

    def _path(self, due: DueCertificate, version: int) -> str:
        interim = due.kind is CertificateKind.INTERIM
        return self._names.path(
            due.account_id, due.order_id, due.created_at, version, interim=interim
        )

    async def _possible_names(self, item: _Item) -> Iterator[tuple[int, str]]:
        """Return the versions the bytes may be, with their paths: a recorded one, then new ones."""
        due = item.due
        new = ((n, self._path(due, n)) for n in range(due.newest_version + 1, _MOST_VERSIONS))
        if not due.newest_version:
            return new
        recorded = await read_certificates(self._database, due.account_id, due.order_id)
        same = [one for one in recorded if one.file.sha256 == item.sha256]
        return itertools.chain(((one.version, one.file.path) for one in same), new)

    async def _write_group(self) -> None:
        group = self._waiting[:_MOST_AT_ONCE]
        del self._waiting[:_MOST_AT_ONCE]
        try:
            await asyncio.to_thread(_check, [item for item in group if not item.sha256])
            await self._store([item for item in group if not item.ended])
        except HarvesterError as fault:
            for item in group:
                if not item.ended:
                    item.fault = fault
        finally:
            # A name was taken, or this was cancelled: those go on in a later group.
            self._waiting += [item for item in group if not item.ended]

    async def _store(self, items: Sequence[_Item]) -> None:
        named = []
        for item in items:
            if item.names is None:
                item.names = await self._possible_names(item)
            item.name = item.name or next(item.names, None)
            if item.name is None:
                words = f"order {item.due.order_id}: {_MOST_VERSIONS} names are taken"
                item.fault = StorageUnavailable(words)
            else:
                named.append((item, *item.name))
        if not named:
            return
        files = [NewFile(path, item.body.data, item.sha256) for item, _, path in named]
        done: list[tuple[_Item, NewCertificate]] = []
        for (item, version, _), file in zip(named, await self._archive.put_all(files), strict=True):
            if isinstance(file, StorageUnavailable):
                item.fault = file
            elif file is None:
                item.name = None  # taken by other bytes
            else:
                done.append((item, self._new(item.due, version, file, item.body.cf_ray)))
        if done:
            await self._record([new for _, new in done], "certificate stored")
        for item, _ in done:
            item.stored = True

    def _new(
        self, due: DueCertificate, version: int, file: StoredFile, cf_ray: str | None
    ) -> NewCertificate:
        certificate = Certificate(version, due.kind, file, self._clock())
        return NewCertificate(due.account_id, due.order_id, certificate, cf_ray)

    async def _record(self, new: Sequence[NewCertificate], event: str) -> None:
        await record_certificates(self._database, new)
        for one in new:
            log.info(
                event,
                account=one.account_id,
                order=one.order_id,
                version=one.certificate.version,
                kind=one.certificate.kind,
                size=one.certificate.file.size,
                sha256=one.certificate.file.sha256,
                cf_ray=one.cf_ray,
            )


def _check(items: Iterable[_Item]) -> None:
    for item in items:
        try:
            check_pdf(item.body.data)
        except Exception as fault:  # noqa: BLE001 - raised to the one who filed it
            item.fault = fault
        item.sha256 = hashlib.sha256(item.body.data).hexdigest()
