"""Read what Lune shows of one account, and record each answer before the next is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from harvester.context import Stop
from harvester.domain.errors import (
    AccountRefused,
    KeyRefused,
    LuneError,
    NotFound,
    RequestRefused,
    UnexpectedAnswer,
    Unreachable,
)
from harvester.domain.ledger import Ledger
from harvester.domain.orders import Account, OrderPage, Source
from harvester.domain.ports import Lune
from harvester.domain.records import Recorded, SweepMark
from harvester.domain.schedule import Cadence
from harvester.harvest.reports import SweepReport
from harvester.lune.priority import Urgency

log = structlog.get_logger()


@dataclass(slots=True)
class Listing:
    """One account's listing while it is read: what it has shown, whether known ground was reached.

    ``shown`` are those of the ``wanted`` orders that were on its pages. ``read`` has a hash of each
    page: years of orders need not be remembered to notice that a page comes again. ``place`` is the
    place of the next page's first order; orders whose place cannot be told yet wait in
    ``unplaced``.
    """

    mark: SweepMark
    wanted: Set[str] = frozenset()
    shown: set[str] = field(default_factory=set)
    read: set[int] = field(default_factory=set)
    pages: int = 0
    joined: bool = False
    place: int | None = None
    unplaced: list[str] = field(default_factory=list)


class Reader:
    """Reads listings, stretches of them and single orders; what it finds goes into a report.

    ``top_only`` holds the accounts whose listing did not start where an order's id said; ``looks``
    counts the requests for open orders.
    """

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
        self.cadence = cadence
        self._clock = clock
        self._stop = stop
        self.top_only: set[str] = set()
        self.looks = 0

    async def read_listing(
        self,
        account: Account,
        source: Source,
        report: SweepReport,
        far_enough: Callable[[Listing, Recorded], bool],
        wanted: Set[str] = frozenset(),
    ) -> Listing:
        """Read pages from the newest on, each recorded before the next is asked for."""
        listing = Listing(await self._ledger.begin_sweep(account.id), wanted)
        after: str | None = None
        restarted = False
        while not self._stop.asked:
            try:
                page = await self._lune.fetch_orders(account, after, urgency=Urgency.BACKGROUND)
            except RequestRefused:
                # A cursor can lose its meaning; from the top once more, then it is a fault.
                if after is None or restarted:
                    raise
                after, restarted = None, True
                listing.read.clear()
                listing.unplaced.clear()
                listing.place = None
                continue
            listing.pages += 1
            recorded = await self._record(
                account, page, source, report, listing.mark, listing.place
            )
            await self._keep_place(account, listing, page, recorded)
            ids = [order.id for order in page.orders]
            listing.shown.update(listing.wanted & set(ids))
            if page.next_cursor is None:
                listing.joined = True
                return listing
            known = hash((*ids, *(odd.reference for odd in page.set_aside)))
            if known in listing.read or not (ids or page.set_aside):
                raise UnexpectedAnswer(
                    "the listing repeats itself and never ends", method="GET", path="/orders"
                )
            listing.read.add(known)
            if far_enough(listing, recorded):
                return listing
            after = page.next_cursor
        return listing

    async def _keep_place(
        self, account: Account, listing: Listing, page: OrderPage, recorded: Recorded
    ) -> None:
        """Carry the place on to the next page, and back to pages whose place was not known."""
        length = len(page.orders) + len(page.set_aside)
        if recorded.place is None:
            listing.unplaced += [order.id for order in page.orders]
            return
        listing.place = recorded.place - length
        if listing.unplaced:
            first = recorded.place + len(listing.unplaced)
            await self._ledger.place_orders(account.id, listing.unplaced, first)
            listing.unplaced.clear()

    async def read_stretch(
        self, account: Account, place: int, order_id: str, report: SweepReport
    ) -> set[str] | None:
        """Read the page that should start at an order; return the ids on it.

        None when the account's listing turned out to be readable from the top only.

        The cursor is the id of the order above. That is what one page of Lune's documents says
        of ``after``; another calls it opaque, so an answer without the order shows that this
        account's listing can be read from the top only.
        """
        above = await self._ledger.order_above(account.id, order_id)
        if above is None or above.place != place + 1:
            return set()
        self.looks += 1
        try:
            page = await self._lune.fetch_orders(account, above.order_id)
        except RequestRefused:
            page = OrderPage((), (), None)
        seen = {order.id for order in page.orders}
        if order_id not in seen:
            log.warning("listing is read from the top only", account=account.id)
            self.top_only.add(account.id)
            return None
        await self._record(account, page, Source.CHECK, report, place=place)
        return seen

    async def look_at(
        self, account: Account, order_ids: Iterable[str], source: Source, report: SweepReport
    ) -> None:
        """Ask for orders one by one; when Lune cannot be reached the rest waits."""
        waiting = list(order_ids)
        while waiting and not self._stop.asked:
            order_id = waiting.pop(0)
            now = self._clock()
            self.looks += 1
            try:
                order = await self._lune.fetch_order(account, order_id)
            except NotFound:
                due = self.cadence.next_confirmation(now)
                await self._ledger.record_missing(account.id, order_id, now, due)
                log.warning("order not found", account=account.id, order=order_id)
            except (KeyRefused, AccountRefused):
                raise
            except LuneError as error:
                # Without a connection the others would wait for the same nothing one by one.
                late = [order_id, *waiting] if isinstance(error, Unreachable) else [order_id]
                due = self.cadence.next_sweep_after_fault(now)
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
        place: int | None = None,
    ) -> Recorded:
        recorded = await self._ledger.record_orders(
            account, page, source, self._clock(), self.cadence, mark, place
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
            source=Source.WEBHOOK if order_id in recorded.hinted else source,
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
