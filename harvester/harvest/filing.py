"""File certificates in groups: bytes before the row, and one fsync and one commit for many.

A certificate that comes while a group is being written waits for the next group, so groups are as
large as the disk is slow, and a certificate that comes alone waits for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from harvester.domain.errors import HarvesterError, StorageUnavailable
from harvester.domain.ledger import Ledger
from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import CertificateBody, CertificateKind, StoredFile
from harvester.domain.ports import Archive, Naming
from harvester.domain.records import KnownCertificate, KnownOrder, NewCertificate

log = structlog.get_logger()

MOST_VERSIONS = 1000

_MOST_AT_ONCE = 64


def kind_of(order: KnownOrder) -> CertificateKind:
    """Return what a certificate served for the order now is: final once it is complete."""
    return CertificateKind.FINAL if order.status == COMPLETE else CertificateKind.INTERIM


@dataclass(slots=True, eq=False)
class _Item:
    """A certificate on its way: the versions it may be, each with its key, and how it ended."""

    order: KnownOrder
    body: CertificateBody
    names: Iterator[tuple[int, str]]
    name: tuple[int, str] | None = None
    checked: bool = False
    stored: bool = False
    fault: Exception | None = None

    @property
    def ended(self) -> bool:
        return self.stored or self.fault is not None


class Filer:
    """Checks, stores and records certificates; ``check`` raises ``CertificateRejected``."""

    def __init__(
        self,
        ledger: Ledger,
        archive: Archive,
        *,
        name: Naming,
        check: Callable[[bytes], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._archive = archive
        self._name = name
        self._check = check
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting: list[_Item] = []

    def key(self, order: KnownOrder, version: int) -> str:
        """Return the key of a version of the order's certificate."""
        interim = kind_of(order) is CertificateKind.INTERIM
        return self._name(order.account_id, order.id, order.created_at, version, interim=interim)

    async def file(self, order: KnownOrder, body: CertificateBody) -> None:
        """Store the bytes under the version they are, or as the next one, and record it.

        Durable when this returns. Raises ``CertificateRejected`` for what is no whole PDF,
        ``StorageUnavailable`` and the ledger's errors. Idempotent.
        """
        item = _Item(order, body, await self._names(order, body))
        self._waiting.append(item)
        while not item.ended:
            async with self._turn:  # whoever gets the turn writes for all who wait
                if not item.ended:
                    await self._write_group()
        if item.fault is not None:
            raise item.fault

    async def record(self, order: KnownOrder, version: int, file: StoredFile, event: str) -> None:
        """Record a file that lies in the archive already."""
        await self._record([self._new(order, version, file, None)], event)

    async def _names(self, order: KnownOrder, body: CertificateBody) -> Iterator[tuple[int, str]]:
        """Return the versions the bytes may be, with their keys: a recorded one, then new ones."""
        fresh = ((n, self.key(order, n)) for n in range(order.version + 1, MOST_VERSIONS))
        if not order.version:
            return fresh
        recorded = await self._ledger.certificates(order.account_id, order.id)
        sha256 = hashlib.sha256(body.data).hexdigest()
        same = [(one.version, one.file.key) for one in recorded if one.file.sha256 == sha256]
        return itertools.chain(same, fresh)

    async def _write_group(self) -> None:
        group = self._waiting[:_MOST_AT_ONCE]
        del self._waiting[:_MOST_AT_ONCE]
        try:
            await self._check_all([item for item in group if not item.checked])
            await self._store([item for item in group if not item.ended])
        except HarvesterError as fault:
            for item in group:
                if not item.ended:
                    item.fault = fault
        finally:
            # A name was taken, or this was cancelled: those go on in a later group.
            self._waiting += [item for item in group if not item.ended]

    async def _check_all(self, items: Sequence[_Item]) -> None:
        def check() -> None:
            for item in items:
                try:
                    self._check(item.body.data)
                except Exception as fault:  # noqa: BLE001 - raised to the one who filed it
                    item.fault = fault
                item.checked = True

        await asyncio.to_thread(check)

    async def _store(self, items: Sequence[_Item]) -> None:
        named = []
        for item in items:
            item.name = item.name or next(item.names, None)
            if item.name is None:
                words = f"order {item.order.id}: {MOST_VERSIONS} names are taken"
                item.fault = StorageUnavailable(words)
            else:
                named.append((item, *item.name))
        if not named:
            return
        files = [(key, item.body.data) for item, _, key in named]
        done: list[tuple[_Item, NewCertificate]] = []
        for (item, version, _), file in zip(named, await self._archive.put_all(files), strict=True):
            if isinstance(file, StorageUnavailable):
                item.fault = file
            elif file is None:
                item.name = None  # taken by other bytes
            else:
                done.append((item, self._new(item.order, version, file, item.body.cf_ray)))
        if done:
            await self._record([new for _, new in done], "certificate filed")
        for item, _ in done:
            item.stored = True

    def _new(
        self, order: KnownOrder, version: int, file: StoredFile, cf_ray: str | None
    ) -> NewCertificate:
        certificate = KnownCertificate(version, kind_of(order), file, self._clock())
        return NewCertificate(order.account_id, order.id, certificate, cf_ray)

    async def _record(self, filed: Sequence[NewCertificate], event: str) -> None:
        await self._ledger.record_certificates(filed)
        for one in filed:
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
