"""Find new orders and follow the open ones, account by account."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from harvester.context import Context, in_parallel
from harvester.domain.errors import AccountRefused, HarvesterError, KeyRefused, LuneError
from harvester.domain.lune_events import TRUSTED_FOR
from harvester.domain.orders import EVERYTHING, Account, OrderFilter, Source
from harvester.domain.polling import plan_requests
from harvester.harvest.accounts import park
from harvester.harvest.listing import Listing, ListingReader
from harvester.harvest.reports import SweepReport
from harvester.ledger.accounts import (
    due_accounts,
    finish_sweep,
    parked_accounts,
    postpone_sweep,
    read_accounts,
)
from harvester.ledger.database import Database
from harvester.ledger.hints import claim_unknown_orders, hinted_accounts, webhook_health
from harvester.ledger.orders import Recorded
from harvester.ledger.schedule import (
    DueCheck,
    due_checks,
    newest_positions,
    postpone_checks,
    status_durations,
    unseen_open_orders,
)
from harvester.lune.client import LuneClient

log = structlog.get_logger()

_A_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Agenda:
    """What is due by account, read for all at once; ``turns`` is how many had ended by then."""

    checks: Mapping[str, Sequence[DueCheck]]
    newest: Mapping[str, int]
    turns: Mapping[str, int]


class Sweep:
    """Read accounts: their listings for new orders, their open orders for moves."""

    def __init__(self, lune: LuneClient, database: Database, context: Context) -> None:
        self._reader = ListingReader(lune, database, context)
        self._database = database
        self._context = context
        self._schedule = context.schedule
        # One at a time in an account: of two answers the later one must be recorded last.
        self._in_turn: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turns = Counter[str]()
        self._learned_at: datetime | None = None
        self._round_at: datetime | None = None

    async def run_once(self, followed: Iterable[Account]) -> SweepReport:
        """Sweep the followed accounts that are due, and check due orders of any account.

        Faults of one account are noted and leave the others alone; ``KeyRefused`` ends the round.
        """
        began = time.monotonic()
        report = SweepReport()
        now = self._context.clock()
        await self._adapt_schedule(now)
        due = await due_accounts(self._database, now, self._schedule.horizon(now))
        listed = {account.id for account in followed if account.id in due}
        hinted = await hinted_accounts(self._database, now)
        agenda = await self._read_agenda(now)
        checked = agenda.checks.keys() - await parked_accounts(self._database)
        await self._follow_all(listed | hinted | checked, agenda, report, listed)
        if report.accounts:
            self._context.measurements.sweeps.observe(time.monotonic() - began)
        return report

    async def follow_hints(self) -> SweepReport:
        """Check the orders that webhooks named and are due, without waiting for a round."""
        report = SweepReport()
        now = self._context.clock()
        hinted = await hinted_accounts(self._database, now)
        if hinted:
            await self._follow_all(hinted, await self._read_agenda(now, hinted), report)
        return report

    async def drain(
        self,
        followed: Iterable[Account],
        started: datetime,
        scope: OrderFilter = EVERYTHING,
        progress: Callable[[SweepReport], None] = lambda _: None,
    ) -> SweepReport:
        """Read each listing whole (down to ``scope.since``), then the open orders not on it."""
        report = SweepReport()

        async def follow(account: Account) -> None:
            work = self._drain(account, report, started, scope, progress)
            await self._guarded(account, report, work)

        await self._each(followed, follow)
        return report

    async def _read_agenda(
        self, now: datetime, account_ids: Collection[str] | None = None
    ) -> _Agenda:
        turns = self._turns.copy()  # before the checks are read: a turn may end meanwhile
        horizon = self._schedule.horizon(now)
        checks = await due_checks(self._database, now, horizon, account_ids)
        return _Agenda(checks, await newest_positions(self._database, checks.keys()), turns)

    async def _adapt_schedule(self, now: datetime) -> None:
        """Learn once a day how readily orders move; ask for less where the budget is short."""
        schedule = self._reader.schedule
        if self._learned_at is None or not timedelta(0) <= now - self._learned_at < _A_DAY:
            durations = await status_durations(self._database, now)
            schedule = schedule.learned_from(durations, self._schedule)
            self._learned_at = now
        checks, self._reader.checks = self._reader.checks, 0
        if self._round_at is not None:
            schedule = schedule.within_budget(checks, (now - self._round_at).total_seconds())
        self._round_at = now
        self._reader.schedule = schedule

    async def _follow_all(
        self,
        account_ids: Collection[str],
        agenda: _Agenda,
        report: SweepReport,
        listed: Collection[str] = (),
    ) -> None:
        async def follow(account: Account) -> None:
            work = self._follow(account, agenda, report, read_newest=account.id in listed)
            await self._guarded(account, report, work)

        await self._each(await read_accounts(self._database, account_ids), follow)

    async def _each(
        self, accounts: Iterable[Account], work: Callable[[Account], Awaitable[None]]
    ) -> None:
        width = self._context.limits.accounts_at_once
        await in_parallel(accounts, work, width=width, stop=self._context.stop, name="sweep")

    async def _guarded(self, account: Account, report: SweepReport, work: Awaitable[None]) -> None:
        """Let one account's fault be its own; only what concerns all is raised."""
        report.accounts += 1
        try:
            async with self._in_turn[account.id]:
                try:
                    await work
                finally:
                    self._turns[account.id] += 1
        except KeyRefused:
            raise
        except AccountRefused as error:
            report.parked[account.id] = str(error)
            await park(self._database, account, error, self._context)
        except LuneError as error:
            await self._postpone(account, report, str(error), error.cf_ray)
        except HarvesterError:
            raise
        except Exception as error:
            # A fault of ours on one account must not keep the others from being followed.
            log.exception("sweep failed unexpectedly", account=account.id)
            await self._postpone(account, report, f"a fault: {error!r:.200}", None)

    async def _postpone(
        self, account: Account, report: SweepReport, reason: str, cf_ray: str | None
    ) -> None:
        now = self._context.clock()
        report.failed[account.id] = reason
        later = self._schedule.next_sweep_after_fault(now)
        await postpone_sweep(self._database, account.id, later)
        due = await due_checks(self._database, now, self._schedule.horizon(now), [account.id])
        late = [check.order_id for check in due.get(account.id, ())]
        await postpone_checks(self._database, account.id, late, later)
        log.warning(
            "sweep failed",
            account=account.id,
            reason=reason,
            cf_ray=cf_ray,
            next_attempt_at=later.isoformat(timespec="seconds"),
        )

    async def _follow(
        self, account: Account, agenda: _Agenda, report: SweepReport, *, read_newest: bool
    ) -> None:
        """Check what is due by the fewest requests; read the newest page if that is due too."""
        now = self._context.clock()
        if self._turns[account.id] > agenda.turns.get(account.id, 0):
            # Another turn ended in between: what it checked is not to be asked for again.
            agenda = await self._read_agenda(now, [account.id])
        due = agenda.checks.get(account.id, ())
        ids = {check.position: check.order_id for check in due if check.position is not None}
        plan = plan_requests(
            list(ids),
            max([agenda.newest.get(account.id, 0), *ids]),
            read_newest=read_newest,
            by_cursor=account.id not in self._reader.top_only,
        )

        def far_enough(listing: Listing, recorded: Recorded) -> bool:
            listing.joined |= bool(listing.mark.joined) and recorded.known_ground
            return listing.joined and listing.pages >= plan.pages

        listing, seen = None, set[str]()
        if plan.pages:
            wanted = {check.order_id for check in due}
            listing = await self._reader.read_listing(
                account, Source.SWEEP, report, far_enough, wanted
            )
            seen |= listing.shown
        for positions in plan.ranges:
            if self._context.stop.requested:
                break
            first = positions[0]
            found = await self._reader.read_page_range(account, first, ids[first], report)
            if found is None:
                break
            seen |= found
        else:
            unseen = [check.order_id for check in due if check.order_id not in seen]
            await self._reader.check_orders(account, unseen, Source.CHECK, report)
            unknown = await claim_unknown_orders(self._database, account.id, now)
            await self._reader.check_orders(account, unknown, Source.WEBHOOK, report)
        # What a broken off round has left is still due, and planned anew in the next one.
        if listing is not None:
            await self._finish(account, listing)

    async def _drain(
        self,
        account: Account,
        report: SweepReport,
        started: datetime,
        scope: OrderFilter,
        progress: Callable[[SweepReport], None],
    ) -> None:
        def far_enough(_: Listing, recorded: Recorded) -> bool:
            progress(report)
            oldest = recorded.oldest_created_at
            return scope.since is not None and oldest is not None and oldest < scope.since

        listing = await self._reader.read_listing(account, Source.DRAIN, report, far_enough)
        unseen = await unseen_open_orders(self._database, account.id, started, scope)
        await self._reader.check_orders(account, unseen, Source.DRAIN, report)
        await self._finish(account, listing)

    async def _finish(self, account: Account, listing: Listing) -> None:
        if self._context.stop.requested:
            return  # cut short: due again at once
        now = self._context.clock()
        webhooks = await webhook_health(self._database, account.id, now - TRUSTED_FOR)
        due = self._schedule.next_sweep(now, webhooks_work=webhooks.work)
        await finish_sweep(
            self._database, account.id, listing.mark, now, due, joined=listing.joined
        )
