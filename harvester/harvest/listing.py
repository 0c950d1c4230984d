"""Read what Lune shows of one account, and record each answer before the next is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field

import structlog

from harvester.context import Context
from harvester.domain.errors import (
    AccountRefused,
    KeyRefused,
    LuneError,
    NotFound,
    RequestRefused,
    UnexpectedAnswer,
    Unreachable,
)
from harvester.domain.orders import Account, OrderPage, Source
from harvester.domain.schedule import Schedule
from harvester.harvest.reports import SweepReport
from harvester.ledger.accounts import SweepMark, begin_sweep
from harvester.ledger.database import Database
from harvester.ledger.orders import Recorded, record_not_found, record_orders
from harvester.ledger.schedule import order_above, postpone_checks, set_positions
from harvester.lune.client import LuneClient
from harvester.lune.rate_limiter import Priority

log = structlog.get_logger()


@dataclass(slots=True)
class Listing:
    """One account's listing while it is read: what it has shown, whether known ground was reached.

    ``shown`` are those of the ``wanted`` orders that were on its pages. ``read`` has a hash of each
    page: years of orders need not be remembered to notice that a page comes again. ``position`` is
    that of the next page's first order; orders whose position cannot be told yet wait in
    ``unplaced``.
    """

    mark: SweepMark
    wanted: Set[str] = frozenset()
    shown: set[str] = field(default_factory=set)
    read: set[int] = field(default_factory=set)
    pages: int = 0
    joined: bool = False
    position: int | None = None
    unplaced: list[str] = field(default_factory=list)

    def restart(self) -> None:
        """Forget where it was; begin at the top again."""
        self.read.clear()
        self.unplaced.clear()
        self.position = None


class ListingReader:
    """Reads listings, page ranges and single orders; what it finds goes into a report.

    ``schedule`` is the context's until more is learned. ``top_only`` holds the accounts whose
    listing did not start where an order's id said; ``checks`` counts the requests for open orders.
    """

    def __init__(self, lune: LuneClient, database: Database, context: Context) -> None:
        self._lune = lune
        self._database = database
        self._clock = context.clock
        self._stop = context.stop
        self.schedule: Schedule = context.schedule
        self.top_only: set[str] = set()
        self.checks = 0

    async def read_listing(
        self,
        account: Account,
        source: Source,
        report: SweepReport,
        far_enough: Callable[[Listing, Recorded], bool],
        wanted: Set[str] = frozenset(),
    ) -> Listing:
        """Read pages from the newest on, each recorded before the next is asked for."""
        listing = Listing(await begin_sweep(self._database, account.id), wanted)
        after: str | None = None
        restarted = False
        while not self._stop.requested:
            try:
                page = await self._lune.fetch_orders(account, after, priority=Priority.BACKGROUND)
            except RequestRefused:
                # A cursor can lose its meaning; from the top once more, then it is a fault.
                if after is None or restarted:
                    raise
                after, restarted = None, True
                listing.restart()
                continue
            listing.pages += 1
            recorded = await self._record(
                account, page, source, report, sweep=listing.mark, position=listing.position
            )
            await self._keep_position(account, listing, page, recorded)
            ids = [order.id for order in page.orders]
            listing.shown.update(listing.wanted & set(ids))
            if page.next_cursor is None:
                listing.joined = True
                return listing
            known = hash((*ids, *(one.reference for one in page.rejected)))
            if known in listing.read or not (ids or page.rejected):
                raise UnexpectedAnswer(
                    "the listing repeats itself and never ends", method="GET", path="/orders"
                )
            listing.read.add(known)
            if far_enough(listing, recorded):
                return listing
            after = page.next_cursor
        return listing

    async def read_page_range(
        self, account: Account, position: int, order_id: str, report: SweepReport
    ) -> set[str] | None:
        """Read the page that should start at an order; return the ids on it.

        None when the account's listing turned out to be readable from the top only.

        The cursor is the id of the order above. That is what one page of Lune's documents says
        of ``after``; another calls it opaque, so an answer without the order shows that this
        account's listing can be read from the top only.
        """
        above = await order_above(self._database, account.id, order_id)
        if above is None or above.position != position + 1:
            return set()
        self.checks += 1
        try:
            page = await self._lune.fetch_orders(account, above.order_id)
        except RequestRefused:
            page = OrderPage(())
        seen = {order.id for order in page.orders}
        if order_id not in seen:
            log.warning("cursor not honoured", account=account.id, todo="read from the top only")
            self.top_only.add(account.id)
            return None
        await self._record(account, page, Source.CHECK, report, position=position)
        return seen

    async def check_orders(
        self, account: Account, order_ids: Iterable[str], source: Source, report: SweepReport
    ) -> None:
        """Ask for orders one by one; when Lune cannot be reached the rest waits."""
        waiting = list(order_ids)
        while waiting and not self._stop.requested:
            order_id = waiting.pop(0)
            now = self._clock()
            self.checks += 1
            try:
                order = await self._lune.fetch_order(account, order_id)
            except NotFound:
                due = self.schedule.next_confirmation(now)
                await record_not_found(self._database, account.id, order_id, now, due)
                log.warning("order not found", account=account.id, order=order_id)
            except (KeyRefused, AccountRefused):
                raise
            except LuneError as error:
                # Without a connection the others would wait for the same nothing one by one.
                late = [order_id, *waiting] if isinstance(error, Unreachable) else [order_id]
                due = self.schedule.next_sweep_after_fault(now)
                await postpone_checks(self._database, account.id, late, due)
                report.failed[account.id] = str(error)
                log.warning(
                    "order check failed",
                    account=account.id,
                    order=order_id,
                    reason=str(error),
                    cf_ray=error.cf_ray,
                    postponed=len(late),
                )
                waiting = [] if len(late) > 1 else waiting
            else:
                await self._record(account, OrderPage((order,)), source, report)

    async def _keep_position(
        self, account: Account, listing: Listing, page: OrderPage, recorded: Recorded
    ) -> None:
        """Carry the position on to the next page, and back to pages where it was not known."""
        length = len(page.orders) + len(page.rejected)
        if recorded.position is None:
            listing.unplaced += [order.id for order in page.orders]
            return
        listing.position = recorded.position - length
        if listing.unplaced:
            first = recorded.position + len(listing.unplaced)
            await set_positions(self._database, account.id, listing.unplaced, first)
            listing.unplaced.clear()

    async def _record(
        self,
        account: Account,
        page: OrderPage,
        source: Source,
        report: SweepReport,
        *,
        sweep: SweepMark | None = None,
        position: int | None = None,
    ) -> Recorded:
        recorded = await record_orders(
            self._database,
            account,
            page,
            source,
            self._clock(),
            self.schedule,
            sweep=sweep,
            position=position,
        )
        report.seen += recorded.seen
        report.new += recorded.new
        report.changed += len(recorded.moves) - recorded.new
        report.anomalies += len(recorded.anomalies)
        for rejected in recorded.rejected:
            report.rejected[account.id, rejected.reference] = rejected.reason
        log_recorded(account.id, recorded)
        return recorded


def log_recorded(account_id: str, recorded: Recorded) -> None:
    """Log one line per transition, per anomaly and per rejected order."""
    for one in recorded.moves:
        log.info(
            "order moved",
            account=account_id,
            order=one.order_id,
            before=one.move.before,
            after=one.move.after,
            source=one.source,
        )
    for order_id, anomaly in recorded.anomalies:
        log.warning(
            "order anomaly",
            account=account_id,
            order=order_id,
            kind=anomaly.kind,
            recorded=anomaly.recorded,
            served=anomaly.served,
        )
    for rejected in recorded.rejected:
        log.warning(
            "order rejected",
            account=account_id,
            reference=rejected.reference,
            reason=rejected.reason,
        )
