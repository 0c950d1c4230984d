"""Fetch the certificates that are owed, check them, file them, record them: each once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from harvester.context import Stop, in_parallel
from harvester.domain import schedule as dates
from harvester.domain.errors import (
    AccountRefused,
    CertificateRejected,
    HarvesterError,
    KeyRefused,
    LedgerDamaged,
    LedgerUnavailable,
    LuneError,
    NotFound,
    StorageUnavailable,
    UnexpectedAnswer,
    Unreachable,
)
from harvester.domain.ledger import Ledger
from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import Account, CertificateBody, CertificateState
from harvester.domain.ports import Archive, Lune, Naming
from harvester.domain.records import EVERYTHING, KnownOrder, OrderFilter
from harvester.domain.schedule import Cadence
from harvester.harvest.filing import MOST_VERSIONS, Filer
from harvester.harvest.reports import CollectReport

log = structlog.get_logger()

AT_ONCE = 32
"""Certificates on their way: some are downloaded, the others wait for the disk."""

_MEDIA_TYPES = {"application/pdf", "application/octet-stream"}
_BATCH = 200
_MOST_LOST = 8
"""Certificates in a row that are not reached at all before this counts as an outage."""

_OUTAGE_PAUSE = timedelta(minutes=1)


class Collector:
    """Brings owed certificates into the archive.

    ``check`` raises ``CertificateRejected`` for bytes that are not a whole PDF.
    """

    def __init__(
        self,
        lune: Lune,
        ledger: Ledger,
        archive: Archive,
        *,
        name: Naming,
        check: Callable[[bytes], None],
        cadence: Cadence,
        clock: Callable[[], datetime],
        stop: Stop,
    ) -> None:
        self._lune = lune
        self._ledger = ledger
        self._archive = archive
        self._filer = Filer(ledger, archive, name=name, check=check, clock=clock)
        self._check = check
        self._cadence = cadence
        self._clock = clock
        self._stop = stop
        self._trouble: str | None = None
        self._lost = 0
        self._outage_since: datetime | None = None

    async def run_once(
        self,
        scope: OrderFilter = EVERYTHING,
        untried_since: datetime | None = None,
        progress: Callable[[CollectReport], None] = lambda _: None,
    ) -> CollectReport:
        """Fetch what is due until nothing is; stop early when the archive or Lune is gone.

        Neither is an order's fault: what was not tried stays due. While Lune gives nothing, one
        certificate a minute is tried, and the rest as soon as one comes.
        """
        report = CollectReport(storage=await self._storage_trouble())
        width = AT_ONCE
        if self._outage_since is not None and report.storage is None:
            # Before it began: the clock was set back.
            if timedelta(0) <= self._clock() - self._outage_since < _OUTAGE_PAUSE:
                return report
            width = 1
        self._lost = 0
        accounts = {account.id: account for account in await self._ledger.accounts()}

        present: set[KnownOrder] = set()

        async def collect(order: KnownOrder) -> None:
            if report.storage is None and report.unreachable is None:
                account = accounts[order.account_id]
                if not await self._collect(order, account, report, present=order in present):
                    in_vain.add((order.account_id, order.id))
                progress(report)

        before: list[KnownOrder] = []
        in_vain: set[tuple[str, str]] = set()
        while not self._stop.asked and report.storage is None and report.unreachable is None:
            now = self._clock()
            batch = await self._ledger.due_certificates(
                now,
                self._cadence.horizon(now),
                _BATCH if width > 1 else 1,
                scope=scope,
                untried_since=untried_since,
            )
            if untried_since is not None:
                # What the ledger says of tries is of no use after the clock was set back.
                batch = [order for order in batch if (order.account_id, order.id) not in in_vain]
            if not batch or batch == before:
                break
            try:
                present = await self._present(batch)
            except StorageUnavailable as error:
                report.storage = str(error)
                break
            await in_parallel(batch, collect, width=width, stop=self._stop, name="collect")
            before = batch
            width = AT_ONCE
        if report.storage is not None and self._trouble is None:
            log.warning("archive takes no files", reason=report.storage)
        self._trouble = report.storage
        self._note_outage(report)
        return report

    def _note_outage(self, report: CollectReport) -> None:
        if report.unreachable is not None:
            if self._outage_since is None:
                log.warning("no certificate can be had", reason=report.unreachable)
            self._outage_since = self._clock()
        elif self._outage_since is not None and report.filed + report.not_yet:
            log.info("certificates can be had again")
            self._outage_since = None

    async def _storage_trouble(self) -> str | None:
        """Tell whether the archive still takes no files, before any certificate is asked for."""
        if self._trouble is None:
            return None
        try:
            await self._archive.probe()
        except StorageUnavailable as error:
            return str(error)
        log.info("archive takes files again")
        return None

    async def _collect(
        self, order: KnownOrder, account: Account, report: CollectReport, *, present: bool
    ) -> bool:
        """Get one certificate as far as it goes now, recorded; tell whether it is filed."""
        try:
            if present and await self._adopt(order):
                report.adopted += 1
                return True
            body = await self._fetch(order, account)
            await self._file(order, body)
        except NotFound as error:
            report.not_yet += 1
            await self._not_yet(order, error)
        except AccountRefused as error:
            now = self._clock()
            until = self._cadence.next_try_of_parked(now)
            if await self._ledger.park_account(account.id, str(error), until, now):
                log.warning("account parked", account=account.id, reason=str(error))
        except (CertificateRejected, UnexpectedAnswer) as error:
            report.failed += 1
            await self._failed(order, CertificateState.FAILED, error)
        except StorageUnavailable as error:
            report.storage = str(error)
        except (KeyRefused, LedgerUnavailable, LedgerDamaged):
            raise
        except LuneError as error:
            report.failed += 1
            await self._failed(order, CertificateState.OWED, error)
            self._lost += isinstance(error, Unreachable)
            if self._lost >= _MOST_LOST or self._outage_since is not None:
                report.unreachable = str(error)
        except Exception as error:
            # A fault of ours on one order must not keep the others from their certificates.
            report.failed += 1
            log.exception("collecting broke", account=order.account_id, order=order.id)
            await self._failed(order, CertificateState.FAILED, error)
        else:
            self._lost = 0
            report.filed += 1
            report.bytes += len(body.data)
            return True
        return False

    async def _fetch(self, order: KnownOrder, account: Account) -> CertificateBody:
        """Return a certificate that is served as a PDF; what is none is kept for inspection."""
        body = await self._lune.fetch_certificate(account, order.id)
        if body.content_type not in _MEDIA_TYPES:
            error = CertificateRejected(f"served as {body.content_type[:80]!a}, not as a PDF")
            await self._keep_rejected(order, body, error)
            raise error
        return body

    async def _file(self, order: KnownOrder, body: CertificateBody) -> None:
        try:
            await self._filer.file(order, body)
        except CertificateRejected as error:
            await self._keep_rejected(order, body, error)
            raise

    async def _keep_rejected(
        self, order: KnownOrder, body: CertificateBody, error: CertificateRejected
    ) -> None:
        await self._archive.quarantine(order.id, self._lune.redact(body.data), str(error))

    async def _present(self, orders: Sequence[KnownOrder]) -> set[KnownOrder]:
        """Return the orders under whose next name a file lies already.

        A crash between a file and its row leaves one, and so does a ledger that was lost.
        """
        keys: dict[str, KnownOrder] = {}
        for order in orders:
            with suppress(Exception):  # this order's own fault, told when it is filed
                keys[self._filer.key(order, order.version + 1)] = order
        return {keys[key] for key in await self._archive.existing(keys)}

    async def _adopt(self, order: KnownOrder) -> bool:
        """Record whole files that lie under this order's next names without a row."""
        adopted = False
        for version in range(order.version + 1, MOST_VERSIONS):
            key = self._filer.key(order, version)
            data = await self._archive.read(key)
            if data is None:
                break
            try:
                await asyncio.to_thread(self._check, data)
            except CertificateRejected:
                break  # not ours; it is left alone and a free name is found when filing
            file = await self._archive.put(key, data)
            if file is None:
                break
            await self._filer.record(order, version, file, "certificate adopted")
            adopted = True
        return adopted

    async def _not_yet(self, order: KnownOrder, error: LuneError) -> None:
        now = self._clock()
        if order.status != COMPLETE:
            # Not a fault: an order may retire for months before there is a certificate.
            await self._ledger.record_certificate_failure(
                order, now, state=CertificateState.OWED, reason="none yet", due=None, spent=False
            )
            return
        state = dates.state_while_missing(now, order.owed_since or now)
        await self._ledger.record_certificate_failure(
            order,
            now,
            state=state,
            reason="Lune answers 404: there is none yet",
            due=dates.next_try_not_yet(now, order.attempts),
            spent=True,
        )
        log.warning(
            "certificate missing",
            account=order.account_id,
            order=order.id,
            attempts=order.attempts + 1,
            state=state,
            cf_ray=error.cf_ray,
        )

    async def _failed(self, order: KnownOrder, state: CertificateState, error: Exception) -> None:
        now = self._clock()
        # What an unexpected error says may hold anything; its kind is enough beside the log.
        known = isinstance(error, HarvesterError)
        reason = str(error) if known else f"a fault of the harvester: {type(error).__name__}"
        final = order.status == COMPLETE
        due = dates.next_try_after_fault(now, order.attempts) if final else None
        await self._ledger.record_certificate_failure(
            order, now, state=state, reason=reason, due=due, spent=True
        )
        log.warning(
            "certificate not had",
            account=order.account_id,
            order=order.id,
            attempts=order.attempts + 1,
            state=state,
            reason=reason,
            cf_ray=getattr(error, "cf_ray", None),
        )
