"""Find new orders and follow the open ones, account by account."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from harvester.context import Stop, in_parallel
from harvester.domain.errors import AccountRefused, HarvesterError, KeyRefused, LuneError
from harvester.domain.ledger import Ledger
from harvester.domain.lune_events import TRUSTED
from harvester.domain.orders import Account, Source
from harvester.domain.polling import plan_account
from harvester.domain.ports import Lune
from harvester.domain.records import EVERYTHING, DueLook, OrderFilter, Recorded
from harvester.domain.schedule import Cadence, learn_weights, worth_within
from harvester.harvest.listing import Listing, Reader
from harvester.harvest.reports import SweepReport

log = structlog.get_logger()

ACCOUNTS_AT_ONCE = 4

_STAYS = 2000
_A_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Agenda:
    """What is due by account, read for all at once; ``turns`` is how many had ended by then."""

    looks: Mapping[str, Sequence[DueLook]]
    newest: Mapping[str, int]
    turns: Mapping[str, int]


class Sweep:
    """Look at accounts: their listings for new orders, their open orders for moves.

    ``budget`` is how many requests a second may go into looks at open orders.
    """

    def __init__(
        self,
        lune: Lune,
        ledger: Ledger,
        cadence: Cadence,
        clock: Callable[[], datetime],
        stop: Stop,
        *,
        budget: float = math.inf,
    ) -> None:
        self._reader = Reader(lune, ledger, cadence, clock, stop)
        self._ledger = ledger
        self._cadence = cadence
        self._clock = clock
        self._stop = stop
        self._budget = budget
        # One at a time in an account: of two answers the later one must be recorded last.
        self._in_turn: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turns = Counter[str]()
        self._learned_at: datetime | None = None
        self._round_at: datetime | None = None

    async def run_once(self, followed: Iterable[Account]) -> SweepReport:
        """Sweep the followed accounts that are due, and look at due orders of any account.

        Faults of one account are noted and leave the others alone; ``KeyRefused`` ends the round.
        """
        report = SweepReport()
        now = self._clock()
        await self._keep_pace(now)
        due = await self._ledger.due_accounts(now, self._cadence.horizon(now))
        listed = {account.id for account in followed if account.id in due}
        hinted = await self._ledger.hinted_accounts(now)
        agenda = await self._read_agenda(now)
        looked = agenda.looks.keys() - await self._ledger.parked_accounts()
        await self._follow_all(listed | hinted | looked, agenda, report, listed)
        return report

    async def heed(self) -> SweepReport:
        """Look at the orders that webhooks told of and are due, without waiting for a round."""
        report = SweepReport()
        now = self._clock()
        hinted = await self._ledger.hinted_accounts(now)
        if hinted:
            await self._follow_all(hinted, await self._read_agenda(now, hinted), report)
        return report

    async def _read_agenda(
        self, now: datetime, account_ids: Collection[str] | None = None
    ) -> _Agenda:
        turns = self._turns.copy()  # before the looks are read: a turn may end meanwhile
        looks = await self._ledger.due_looks(now, self._cadence.horizon(now), account_ids)
        return _Agenda(looks, await self._ledger.newest_places(looks.keys()), turns)

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

        await self._each(await self._ledger.accounts(account_ids), follow)

    async def _keep_pace(self, now: datetime) -> None:
        """Learn once a day how readily orders move; ask for less where the budget is short."""
        cadence = self._reader.cadence
        if self._learned_at is None or not timedelta(0) <= now - self._learned_at < _A_DAY:
            stays = await self._ledger.recent_stays(_STAYS, now)
            cadence = replace(cadence, weights=learn_weights(stays, self._cadence.weights))
            self._learned_at = now
        looks, self._reader.looks = self._reader.looks, 0
        if self._round_at is not None:
            seconds = (now - self._round_at).total_seconds()
            worth = worth_within(cadence.worth, looks, seconds, self._budget)
            cadence = replace(cadence, worth=worth)
        self._round_at = now
        self._reader.cadence = cadence

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
            async with self._in_turn[account.id]:
                try:
                    await work
                finally:
                    self._turns[account.id] += 1
        except KeyRefused:
            raise
        except AccountRefused as error:
            report.parked[account.id] = str(error)
            now = self._clock()
            until = self._cadence.next_try_of_parked(now)
            if await self._ledger.park_account(account.id, str(error), until, now):
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
        looks = await self._ledger.due_looks(now, self._cadence.horizon(now), [account.id])
        late = [look.order_id for look in looks.get(account.id, ())]
        await self._ledger.postpone_looks(account.id, late, later)
        log.warning("account not swept", account=account.id, reason=reason, cf_ray=cf_ray)

    async def _follow(
        self, account: Account, agenda: _Agenda, report: SweepReport, *, read_newest: bool
    ) -> None:
        """Look at what is due by the fewest requests; read the newest page if that is due too."""
        now = self._clock()
        if self._turns[account.id] > agenda.turns.get(account.id, 0):
            # Another turn ended in between: what it looked at is not to be asked for again.
            agenda = await self._read_agenda(now, [account.id])
        due = agenda.looks.get(account.id, ())
        ids = {look.place: look.order_id for look in due if look.place is not None}
        plan = plan_account(
            list(ids),
            max([agenda.newest.get(account.id, 0), *ids]),
            read_newest=read_newest,
            by_cursor=account.id not in self._reader.top_only,
        )

        def far_enough(listing: Listing, recorded: Recorded) -> bool:
            listing.joined |= bool(listing.mark.joined) and recorded.old
            return listing.joined and listing.pages >= plan.pages

        listing, seen = None, set[str]()
        if plan.pages:
            wanted = {look.order_id for look in due}
            listing = await self._reader.read_listing(
                account, Source.SWEEP, report, far_enough, wanted
            )
            seen |= listing.shown
        for stretch in plan.stretches:
            if self._stop.asked:
                break
            found = await self._reader.read_stretch(account, stretch[0], ids[stretch[0]], report)
            if found is None:
                break
            seen |= found
        else:
            unseen = [look.order_id for look in due if look.order_id not in seen]
            await self._reader.look_at(account, unseen, Source.CHECK, report)
            strangers = await self._ledger.claim_strangers(account.id, now)
            await self._reader.look_at(account, strangers, Source.WEBHOOK, report)
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
        unseen = await self._ledger.unseen_open(account.id, started, scope)
        await self._reader.look_at(account, unseen, Source.DRAIN, report)
        await self._finish(account, listing)

    async def _finish(self, account: Account, listing: Listing) -> None:
        if self._stop.asked:
            return  # cut short: due again at once
        now = self._clock()
        told = await self._ledger.announcements(account.id, now - TRUSTED)
        due = self._cadence.next_sweep(now, announced=told.work)
        await self._ledger.finish_sweep(account.id, listing.mark, now, due, joined=listing.joined)
