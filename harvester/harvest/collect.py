"""Fetch the certificates that are owed, check them, file them, record them: each once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from harvester.context import Context, in_parallel
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
from harvester.domain.lifecycle import COMPLETE
from harvester.domain.orders import (
    EVERYTHING,
    Account,
    CertificateBody,
    CertificateState,
    OrderFilter,
)
from harvester.domain.schedule import (
    next_attempt_after_fault,
    next_attempt_when_absent,
    state_while_missing,
)
from harvester.harvest.accounts import park
from harvester.harvest.filing import Filing
from harvester.harvest.reports import CollectReport
from harvester.ledger.accounts import read_accounts
from harvester.ledger.certificates import (
    DueCertificate,
    due_certificates,
    record_certificate_failure,
)
from harvester.ledger.database import Database
from harvester.lune.client import LuneClient

log = structlog.get_logger()

_MEDIA_TYPES = {"application/pdf", "application/octet-stream"}
_BATCH = 200
_MOST_UNREACHABLE = 8
"""Certificates in a row that are not reached at all before this counts as an outage."""

_OUTAGE_PAUSE = timedelta(minutes=1)


class Collector:
    """Brings owed certificates into the archive."""

    def __init__(
        self, lune: LuneClient, database: Database, filing: Filing, context: Context
    ) -> None:
        self._lune = lune
        self._database = database
        self._filing = filing
        self._context = context
        self._storage_fault: str | None = None
        self._unreachable = 0
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
        report = CollectReport(storage=await self._remaining_storage_fault())
        width = self._context.limits.certificates_at_once
        if self._outage_since is not None and report.storage is None:
            # Before it began: the clock was set back.
            if timedelta(0) <= self._context.clock() - self._outage_since < _OUTAGE_PAUSE:
                return report
            width = 1
        await self._collect_due(scope, untried_since, progress, report, width)
        if report.storage is not None and self._storage_fault is None:
            log.warning("archive unavailable", reason=report.storage)
        self._storage_fault = report.storage
        self._note_outage(report)
        return report

    async def _collect_due(
        self,
        scope: OrderFilter,
        untried_since: datetime | None,
        progress: Callable[[CollectReport], None],
        report: CollectReport,
        width: int,
    ) -> None:
        self._unreachable = 0
        accounts = {account.id: account for account in await read_accounts(self._database)}
        present: set[DueCertificate] = set()
        in_vain: set[tuple[str, str]] = set()

        async def collect(due: DueCertificate) -> None:
            if report.storage is None and report.unreachable is None:
                account = accounts[due.account_id]
                if not await self._collect(due, account, report, present=due in present):
                    in_vain.add((due.account_id, due.order_id))
                progress(report)

        before: list[DueCertificate] = []
        stop = self._context.stop
        while not stop.requested and report.storage is None and report.unreachable is None:
            now = self._context.clock()
            batch = await due_certificates(
                self._database,
                now,
                self._context.schedule.horizon(now),
                _BATCH if width > 1 else 1,
                scope=scope,
                untried_since=untried_since,
            )
            if untried_since is not None:
                # What the ledger says of tries is of no use after the clock was set back.
                batch = [due for due in batch if (due.account_id, due.order_id) not in in_vain]
            if not batch or batch == before:
                break
            try:
                present = await self._filing.already_in_archive(batch)
            except StorageUnavailable as error:
                report.storage = str(error)
                break
            await in_parallel(batch, collect, width=width, stop=stop, name="collect")
            before = batch
            width = self._context.limits.certificates_at_once

    def _note_outage(self, report: CollectReport) -> None:
        if report.unreachable is not None:
            if self._outage_since is None:
                log.warning("certificate downloads suspended", reason=report.unreachable)
            self._outage_since = self._context.clock()
        elif self._outage_since is not None and report.stored + report.not_yet:
            log.info("certificate downloads resumed")
            self._outage_since = None

    async def _remaining_storage_fault(self) -> str | None:
        """Tell why the archive still takes no files, before any certificate is asked for."""
        if self._storage_fault is None:
            return None
        try:
            await self._filing.probe()
        except StorageUnavailable as error:
            return str(error)
        log.info("archive available again")
        return None

    async def _collect(
        self, due: DueCertificate, account: Account, report: CollectReport, *, present: bool
    ) -> bool:
        """Get one certificate as far as it goes now, recorded; tell whether it is stored."""
        try:
            if present and await self._filing.recover(due):
                report.recovered += 1
                return True
            body = await self._fetch(due, account)
            await self._file(due, body)
        except NotFound as error:
            report.not_yet += 1
            await self._not_yet(due, error)
        except AccountRefused as error:
            await park(self._database, account, error, self._context)
        except (CertificateRejected, UnexpectedAnswer) as error:
            report.failed += 1
            await self._failed(due, CertificateState.FAILED, error)
        except StorageUnavailable as error:
            report.storage = str(error)
        except (KeyRefused, LedgerUnavailable, LedgerDamaged):
            raise
        except LuneError as error:
            report.failed += 1
            await self._failed(due, CertificateState.OWED, error)
            self._unreachable += isinstance(error, Unreachable)
            if self._unreachable >= _MOST_UNREACHABLE or self._outage_since is not None:
                report.unreachable = str(error)
        except Exception as error:
            # A fault of ours on one order must not keep the others from their certificates.
            report.failed += 1
            log.exception(
                "certificate failed unexpectedly", account=due.account_id, order=due.order_id
            )
            await self._failed(due, CertificateState.FAILED, error)
        else:
            self._unreachable = 0
            report.stored += 1
            report.bytes += len(body.data)
            return True
        return False

    async def _fetch(self, due: DueCertificate, account: Account) -> CertificateBody:
        """Return a certificate that is served as a PDF; what is none is kept for inspection."""
        body = await self._lune.fetch_certificate(account, due.order_id)
        if body.content_type not in _MEDIA_TYPES:
            error = CertificateRejected(f"served as {body.content_type[:80]!a}, not as a PDF")
            await self._filing.reject(due, self._lune.redact(body.data), error)
            raise error
        return body

    async def _file(self, due: DueCertificate, body: CertificateBody) -> None:
        try:
            await self._filing.file(due, body)
        except CertificateRejected as error:
            await self._filing.reject(due, self._lune.redact(body.data), error)
            raise

    async def _not_yet(self, due: DueCertificate, error: LuneError) -> None:
        now = self._context.clock()
        if due.status != COMPLETE:
            # Not a fault: an order may retire for months before there is a certificate.
            await record_certificate_failure(
                self._database,
                due,
                now,
                state=CertificateState.OWED,
                reason="none yet",
                next_attempt_at=None,
                counts=False,
            )
            return
        state = state_while_missing(now, due.owed_since or now)
        again = next_attempt_when_absent(now, due.attempts)
        await record_certificate_failure(
            self._database,
            due,
            now,
            state=state,
            reason="Lune answers 404: there is none yet",
            next_attempt_at=again,
            counts=True,
        )
        log.warning(
            "certificate not available",
            account=due.account_id,
            order=due.order_id,
            attempts=due.attempts + 1,
            state=state,
            next_attempt_at=again.isoformat(timespec="seconds"),
            cf_ray=error.cf_ray,
        )

    async def _failed(self, due: DueCertificate, state: CertificateState, error: Exception) -> None:
        now = self._context.clock()
        # What an unexpected error says may hold anything; its kind is enough beside the log.
        known = isinstance(error, HarvesterError)
        reason = str(error) if known else f"a fault of the harvester: {type(error).__name__}"
        again = next_attempt_after_fault(now, due.attempts) if due.status == COMPLETE else None
        await record_certificate_failure(
            self._database,
            due,
            now,
            state=state,
            reason=reason,
            next_attempt_at=again,
            counts=True,
        )
        log.warning(
            "certificate download failed",
            account=due.account_id,
            order=due.order_id,
            attempts=due.attempts + 1,
            state=state,
            reason=reason,
            next_attempt_at=None if again is None else again.isoformat(timespec="seconds"),
            cf_ray=getattr(error, "cf_ray", None),
        )
