"""Find new orders and follow the open ones: by pages of the listing and by single requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from harvester.domain.cadence import Cadence
from harvester.domain.errors import (
    AccountRefused,
    HarvesterError,
    KeyRefused,
    LuneError,
    NotFound,
    RequestRefused,
    UnexpectedAnswer,
    Unreachable,
)
from harvester.domain.orders import Account, OrderPage, Source
from harvester.domain.planning import plan_account
from harvester.domain.ports import Ledger, Lune
from harvester.domain.records import EVERYTHING, OrderFilter, Recorded, SweepMark
from harvester.harvest.reports import SweepReport
from harvester.harvest.stopping import Stop, in_parallel

log = structlog.get_logger()

ACCOUNTS_AT_ONCE = 4


@dataclass(slots=True)
class _Listing:
    """One account's listing while it is read: ids seen, and whether known ground was reached."""

    mark: SweepMark
    seen: set[str] = field(default_factory=set)
    pages: int = 0
    joined: bool = False


class Sweep:
    """Look at accounts: their listings for new orders, their open orders for moves."""

    def __init__(
        self,
        lune: Lune,
        ledger: Ledger,
        cadence: Cadence,
        clock: Callable[[], datetime],
        stop: Stop,
    ) -> None:
        self._lune = lune
        self._ledger = ledger
        self._cadence = cadence
        self._clock = clock
        self._stop = stop

    async def run_once(self, followed: Iterable[Account]) -> SweepReport:
        """Sweep the followed accounts that are due, and look at due orders of any account.

        Faults of one account are noted and leave the others alone; ``KeyRefused`` ends the round.
        """
        report = SweepReport()
        now = self._clock()
        horizon = self._cadence.horizon(now)
        due = await self._ledger.due_accounts(now, horizon)
        listed = {account.id for account in followed if account.id in due}
        looked = await self._ledger.accounts_with_due_looks(now, horizon)

        async def follow(account: Account) -> None:
            if account.id in listed:
                await self._guarded(account, report, self._follow(account, report))
            else:
                await self._guarded(account, report, self._look(account, report))

        await self._each(await self._ledger.accounts(listed | looked), follow)
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

    async def _each(
        self, accounts: Iterable[Account], work: Callable[[Account], Awaitable[None]]
    ) -> None:
        await in_parallel(accounts, work, width=ACCOUNTS_AT_ONCE, stop=self._stop, name="sweep")

    async def _guarded(self, account: Account, report: SweepReport, work: Awaitable[None]) -> None:
        report.accounts += 1
        try:
            await work
        except KeyRefused:
            raise
        except AccountRefused as error:
            report.parked[account.id] = str(error)
            until = self._cadence.next_try_of_parked(self._clock())
            if await self._ledger.park_account(account.id, str(error), until):
                log.warning("account parked", account=account.id, reason=str(error))
        except LuneError as error:
            await self._postpone(account, report, str(error), error.cf_ray)
        except HarvesterError:
            raise
        except Exception as error:
            # A fault of ours on one account must not keep the others from being followed.
            log.exception("sweeping broke", account=account.id)
            await self._postpone(account, report, f"a fault: {error!r:.200}", None)

    async def _postpone(
        self, account: Account, report: SweepReport, reason: str, cf_ray: str | None
    ) -> None:
        now = self._clock()
        report.failed[account.id] = reason
        later = self._cadence.next_sweep_after_fault(now)
        await self._ledger.postpone_sweep(account.id, later)
        looks = await self._ledger.due_looks(account.id, now, self._cadence.horizon(now))
        await self._ledger.postpone_looks(account.id, [look.order_id for look in looks], later)
        log.warning("account not swept", account=account.id, reason=reason, cf_ray=cf_ray)

    async def _follow(self, account: Account, report: SweepReport) -> None:
        now = self._clock()
        looks = await self._ledger.due_looks(account.id, now, self._cadence.horizon(now))
        plan = plan_account([look.rank for look in looks])

        def far_enough(listing: _Listing, recorded: Recorded) -> bool:
            listing.joined |= bool(listing.mark.joined) and recorded.old
            return listing.joined and listing.pages >= plan.pages

        listing = await self._list(account, Source.SWEEP, report, far_enough)
        unseen = [look.order_id for look in looks if look.order_id not in listing.seen]
        await self._look_at(account, unseen, Source.CHECK, report)
        await self._finish(account, listing)

    async def _look(self, account: Account, report: SweepReport) -> None:
        now = self._clock()
        looks = await self._ledger.due_looks(account.id, now, self._cadence.horizon(now))
        await self._look_at(account, [look.order_id for look in looks], Source.CHECK, report)

    async def _drain(
        self,
        account: Account,
        report: SweepReport,
        started: datetime,
        scope: OrderFilter,
        progress: Callable[[SweepReport], None],
    ) -> None:
        def far_enough(_: _Listing, recorded: Recorded) -> bool:
            progress(report)
            oldest = recorded.oldest_created_at
            return scope.since is not None and oldest is not None and oldest < scope.since

        listing = await self._list(account, Source.DRAIN, report, far_enough)
        unseen = await self._ledger.unseen_open(account.id, started, scope)
        await self._look_at(account, unseen, Source.DRAIN, report)
        await self._finish(account, listing)

    async def _finish(self, account: Account, listing: _Listing) -> None:
        if self._stop.asked:
            return  # cut short: due again at once
        now = self._clock()
        await self._ledger.finish_sweep(
            account.id, listing.mark, now, self._cadence.next_sweep(now), joined=listing.joined
        )

    async def _list(
        self,
        account: Account,
        source: Source,
        report: SweepReport,
        far_enough: Callable[[_Listing, Recorded], bool],
    ) -> _Listing:
        """Read pages from the newest on, each recorded before the next is asked for."""
        listing = _Listing(await self._ledger.begin_sweep(account.id))
        after: str | None = None
        restarted = False
        while not self._stop.asked:
            try:
                page = await self._lune.fetch_orders(account, after)
            except RequestRefused:
                # A cursor can lose its meaning; from the top once more, then it is a fault.
                if after is None or restarted:
                    raise
                after, restarted = None, True
                listing.seen.clear()
                continue
            listing.pages += 1
            recorded = await self._record(account, page, source, report, listing.mark)
            if page.next_cursor is None:
                listing.joined = True
                return listing
            fresh = {order.id for order in page.orders} | {odd.reference for odd in page.set_aside}
            if fresh <= listing.seen:
                raise UnexpectedAnswer(
                    "the listing repeats itself and never ends", method="GET", path="/orders"
                )
            listing.seen |= fresh
            if far_enough(listing, recorded):
                return listing
            after = page.next_cursor
        return listing

    async def _look_at(
        self, account: Account, order_ids: Iterable[str], source: Source, report: SweepReport
    ) -> None:
        waiting = list(order_ids)
        while waiting and not self._stop.asked:
            order_id = waiting.pop(0)
            now = self._clock()
            try:
                order = await self._lune.fetch_order(account, order_id)
            except NotFound:
                due = self._cadence.next_confirmation(now)
                await self._ledger.record_missing(account.id, order_id, now, due)
                log.warning("order not found", account=account.id, order=order_id)
            except (KeyRefused, AccountRefused):
                raise
            except LuneError as error:
                # Without a connection the others would wait for the same nothing one by one.
                late = [order_id, *waiting] if isinstance(error, Unreachable) else [order_id]
                due = self._cadence.next_sweep_after_fault(now)
                await self._ledger.postpone_looks(account.id, late, due)
                report.failed[account.id] = str(error)
                log.warning(
                    "order not looked at",
                    account=account.id,
                    order=order_id,
                    reason=str(error),
                    cf_ray=error.cf_ray,
                    postponed=len(late),
                )
                waiting = [] if len(late) > 1 else waiting
            else:
                await self._record(account, OrderPage((order,), (), None), source, report)

    async def _record(
        self,
        account: Account,
        page: OrderPage,
        source: Source,
        report: SweepReport,
        mark: SweepMark | None = None,
    ) -> Recorded:
        recorded = await self._ledger.record_orders(
            account, page, source, self._clock(), self._cadence, mark
        )
        report.seen += recorded.seen
        report.new += recorded.new
        report.changed += len(recorded.moves) - recorded.new
        report.anomalies += len(recorded.anomalies)
        for odd in recorded.set_aside:
            report.set_aside[account.id, odd.reference] = odd.reason
        tell(account.id, recorded, source)
        return recorded


def tell(account_id: str, recorded: Recorded, source: Source) -> None:
    """Log one line per transition, per anomaly and per object set aside."""
    for order_id, move in recorded.moves:
        log.info(
            "order moved",
            account=account_id,
            order=order_id,
            before=move.before,
            after=move.after,
            source=source,
        )
    for order_id, anomaly in recorded.anomalies:
        log.warning(
            "order is odd",
            account=account_id,
            order=order_id,
            kind=anomaly.kind,
            recorded=anomaly.recorded,
            served=anomaly.served,
        )
    for odd in recorded.set_aside:
        log.warning(
            "order set aside", account=account_id, reference=odd.reference, reason=odd.reason
        )
