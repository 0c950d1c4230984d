"""What an observation means: where an order stands, what it owes, when it is checked next."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.decisions import (
    MISSING,
    CertificateDue,
    KnownOrder,
    OrderUpdate,
    decide,
    shared_check,
)
from harvester.domain.lifecycle import (
    STATUSES,
    TERMINAL,
    Anomaly,
    AnomalyKind,
    Moved,
    Unchanged,
    is_open,
)
from harvester.domain.lune_events import STATUS_OF_EVENT, Hint
from harvester.domain.orders import CertificateState, Order
from harvester.domain.schedule import Schedule

SECOND, MINUTE, HOUR, DAY = (
    timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days")
)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CREATED, SEEN, CHANGED = NOW - 30 * DAY, NOW - 20 * DAY, NOW - 10 * DAY
SCHEDULE = Schedule(sweep_interval=15 * MINUTE, longest_interval=6 * HOUR)
EAGER = replace(SCHEDULE, interim=True)
OWED, STORED, FAILED = CertificateState.OWED, CertificateState.STORED, CertificateState.FAILED
OWES_NOW, OWES_NOTHING = CertificateDue(OWED, NOW), CertificateDue(None, None)
CHECK = NOW + 33 * MINUTE
"""A date that no rule here sets, for what the others of an answer share."""


def served(status: str, *, created_at: datetime = CREATED) -> Order:
    return Order("o1", status, created_at, "key", "1", {}, {"id": "o1"})


def known(
    status: str,
    state: CertificateState | None = None,
    *,
    changed_at: datetime = CHANGED,
    next_check_at: datetime | None = NOW,
    position: int | None = None,
    not_found_since: datetime | None = None,
) -> KnownOrder:
    return KnownOrder(status, changed_at, SEEN, next_check_at, state, position, not_found_since)


def decided(
    before: KnownOrder | None,
    status: str,
    schedule: Schedule = SCHEDULE,
    *,
    hint: Hint | None = None,
) -> OrderUpdate:
    return decide(before, served(status), NOW, schedule, hint=hint, shared_check_at=CHECK)


def hinted(status: str | None, age: timedelta) -> Hint:
    return Hint("o1", NOW - age, status)


# Where the order stands.


@pytest.mark.parametrize("status", [*STATUSES, "unheard of"])
def test_an_order_seen_for_the_first_time_is_where_it_is_served(status: str) -> None:
    update = decided(None, status)
    assert update.move == update.observation == Moved(None, status, NOW)
    assert (update.status, update.changed_at, update.differs) == (status, NOW, True)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("received", "placed"),
        ("placed", "retiring"),
        ("paid", "complete"),
        ("retiring", "failed"),
        ("paid", "unheard of"),
        ("unheard of", "placed"),
    ],
)
def test_an_order_that_moved_is_in_its_new_status_since_now(before: str, after: str) -> None:
    update = decided(known(before), after)
    assert update.move == Moved(before, after, NOW)
    assert (update.status, update.changed_at, update.differs) == (after, NOW, True)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("received", None),
        ("paid", None),
        ("unheard of", None),
        ("complete", STORED),
        ("complete", OWED),
        ("cancelled", None),
    ],
)
def test_an_order_that_is_where_it_was_changes_nothing(
    status: str, state: CertificateState | None
) -> None:
    update = decided(known(status, state), status)
    assert update.observation == Unchanged(status)
    assert (update.move, update.anomaly, update.certificate) == (None, None, None)
    assert (update.status, update.changed_at, update.differs) == (status, CHANGED, False)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("paid", "placed", AnomalyKind.BACKWARD),
        ("retiring", "received", AnomalyKind.BACKWARD),
        ("complete", "retiring", AnomalyKind.AFTER_THE_END),
        ("cancelled", "complete", AnomalyKind.AFTER_THE_END),
        ("failed", "unheard of", AnomalyKind.AFTER_THE_END),
    ],
)
def test_an_order_served_where_it_cannot_go_stays_and_the_anomaly_is_counted(
    before: str, after: str, kind: AnomalyKind
) -> None:
    update = decided(known(before, STORED if before == "complete" else None), after)
    assert update.anomaly == update.observation == Anomaly(before, after, kind, NOW)
    assert (update.move, update.certificate) == (None, None)
    assert (update.status, update.changed_at, update.differs) == (before, CHANGED, True)


@pytest.mark.parametrize("before", [None, "paid"])
def test_a_status_that_lune_does_not_document_is_a_move_and_an_anomaly(before: str | None) -> None:
    update = decided(None if before is None else known(before), "unheard of")
    assert update.move == Moved(before, "unheard of", NOW)
    assert update.anomaly == Anomaly(before or "", "unheard of", AnomalyKind.UNKNOWN, NOW)


def test_an_unknown_status_is_counted_as_it_is_entered_and_not_while_it_lasts() -> None:
    assert decided(known("unheard of"), "unheard of").anomaly is None
    assert decided(known("unheard of"), "paid").anomaly is None


def test_an_order_that_is_found_again_differs_though_it_did_not_move() -> None:
    update = decided(known("paid", not_found_since=NOW - DAY), "paid")
    assert update.observation == Unchanged("paid")
    assert update.differs


# What it owes.


@pytest.mark.parametrize(
    ("before", "state", "status", "schedule", "due"),
    [
        # A certificate is owed at complete, however the order came there.
        (None, None, "complete", SCHEDULE, OWES_NOW),
        ("paid", None, "complete", SCHEDULE, OWES_NOW),
        ("unheard of", None, "complete", SCHEDULE, OWES_NOW),
        ("complete", None, "complete", SCHEDULE, OWES_NOW),
        # Nothing is owed before, nor where an order ends otherwise.
        (None, None, "retiring", SCHEDULE, None),
        (None, None, "cancelled", SCHEDULE, None),
        ("retiring", None, "failed", SCHEDULE, None),
        # What is owed, stored or has failed stays so while the order does.
        ("complete", OWED, "complete", SCHEDULE, None),
        ("complete", STORED, "complete", SCHEDULE, None),
        ("complete", FAILED, "complete", SCHEDULE, None),
        # Interim ones are owed while retiring, where they are wanted.
        (None, None, "retiring", EAGER, OWES_NOW),
        ("paid", None, "retiring", EAGER, OWES_NOW),
        ("retiring", None, "retiring", EAGER, OWES_NOW),
        ("retiring", STORED, "retiring", EAGER, None),
        ("paid", None, "paid", EAGER, None),
        # The final one is owed beside an interim one, whatever became of that.
        ("retiring", OWED, "complete", EAGER, OWES_NOW),
        ("retiring", STORED, "complete", EAGER, OWES_NOW),
        ("retiring", FAILED, "complete", EAGER, OWES_NOW),
        ("retiring", STORED, "complete", SCHEDULE, OWES_NOW),
        # An interim one that was not had is owed no more when the order ends without one, or when
        # interim ones are wanted no more; one that is stored stays.
        ("retiring", OWED, "cancelled", EAGER, OWES_NOTHING),
        ("retiring", FAILED, "failed", EAGER, OWES_NOTHING),
        ("retiring", OWED, "retiring", SCHEDULE, OWES_NOTHING),
        ("retiring", STORED, "cancelled", EAGER, None),
        ("retiring", STORED, "retiring", SCHEDULE, None),
        # A status that the order cannot have changes nothing.
        ("complete", STORED, "retiring", EAGER, None),
        ("complete", FAILED, "cancelled", SCHEDULE, None),
        ("cancelled", None, "complete", SCHEDULE, None),
    ],
)
def test_what_an_order_owes(
    before: str | None,
    state: CertificateState | None,
    status: str,
    schedule: Schedule,
    due: CertificateDue | None,
) -> None:
    update = decided(None if before is None else known(before, state), status, schedule)
    assert update.certificate == due
    assert update.differs or due is None


# When it is checked next.


@pytest.mark.parametrize(
    ("before", "status", "schedule", "check"),
    [
        # Open orders share the date of their answer.
        (None, "placed", SCHEDULE, CHECK),
        (None, "unheard of", SCHEDULE, CHECK),
        (known("placed"), "paid", SCHEDULE, CHECK),
        (known("paid"), "paid", SCHEDULE, CHECK),
        (known("paid", next_check_at=NOW + DAY), "paid", SCHEDULE, CHECK),
        # An interim certificate is asked for with each check and has no date.
        (known("paid"), "retiring", EAGER, CHECK),
        (known("retiring", OWED), "retiring", EAGER, CHECK),
        # An open order that went backward is checked soon, apart from the others.
        (known("paid"), "placed", SCHEDULE, NOW + 15 * MINUTE),
        # A certificate that is newly owed is asked for at once.
        (None, "complete", SCHEDULE, NOW),
        (known("retiring", STORED, next_check_at=NOW + HOUR), "complete", EAGER, NOW),
        # One that is missing keeps its own date, whatever is served for the order.
        (known("complete", OWED, next_check_at=NOW + HOUR), "complete", SCHEDULE, NOW + HOUR),
        (known("complete", FAILED, next_check_at=NOW + DAY), "complete", SCHEDULE, NOW + DAY),
        (known("complete", OWED, next_check_at=NOW - DAY), "complete", SCHEDULE, NOW - DAY),
        (known("complete", OWED, next_check_at=NOW + HOUR), "paid", SCHEDULE, NOW + HOUR),
        # An order that ended and owes nothing is not checked again.
        (None, "cancelled", SCHEDULE, None),
        (known("paid"), "failed", SCHEDULE, None),
        (known("retiring", OWED), "cancelled", EAGER, None),
        (known("complete", STORED), "complete", SCHEDULE, None),
        (known("cancelled"), "cancelled", SCHEDULE, None),
        # Unless it was served where it cannot be: that is confirmed, and then it is left alone.
        (known("complete", STORED), "paid", SCHEDULE, NOW + 6 * HOUR),
        (known("cancelled", next_check_at=None), "complete", SCHEDULE, NOW + 6 * HOUR),
    ],
)
def test_when_an_order_is_checked_next(
    before: KnownOrder | None, status: str, schedule: Schedule, check: datetime | None
) -> None:
    assert decided(before, status, schedule).next_check_at == check


@pytest.mark.parametrize("before", [None, known("placed"), known("paid")])
def test_an_order_alone_in_its_answer_has_that_answers_date(before: KnownOrder | None) -> None:
    order = served("paid")
    alone = shared_check([(before, order)], NOW, SCHEDULE)
    assert decide(before, order, NOW, SCHEDULE).next_check_at == alone


# Hints.


@pytest.mark.parametrize(
    ("status", "hint", "hint_due", "check"),
    [
        # Answered: the API says as much as the webhook did, or more, or the webhook said nothing.
        ("paid", hinted("paid", SECOND), None, CHECK),
        ("retiring", hinted("paid", SECOND), None, CHECK),
        ("complete", hinted("cancelled", SECOND), None, NOW),
        ("placed", hinted(None, SECOND), None, CHECK),
        # Not yet: asked again soon, and then ever more rarely.
        ("placed", hinted("paid", timedelta(0)), NOW + 2 * SECOND, NOW + 2 * SECOND),
        ("placed", hinted("paid", 16 * SECOND), NOW + 16 * SECOND, NOW + 16 * SECOND),
        ("placed", hinted("paid", 50 * MINUTE), NOW + 10 * MINUTE, NOW + 10 * MINUTE),
        # Given up after an hour, or under a clock that stepped back.
        ("placed", hinted("paid", HOUR), None, CHECK),
        ("placed", hinted("paid", -SECOND), None, CHECK),
    ],
)
def test_a_hint_is_followed_until_it_is_answered_or_given_up(
    status: str, hint: Hint, hint_due: datetime | None, check: datetime
) -> None:
    update = decided(known("placed"), status, hint=hint)
    assert (update.hint_due_at, update.next_check_at) == (hint_due, check)


def test_without_a_hint_none_is_due() -> None:
    assert decided(known("placed"), "placed").hint_due_at is None


def test_an_unanswered_hint_does_not_delay_a_check_that_is_due_sooner() -> None:
    hint = hinted("paid", 50 * MINUTE)
    sooner = NOW + 5 * MINUTE
    update = decide(
        known("placed"), served("placed"), NOW, SCHEDULE, hint=hint, shared_check_at=sooner
    )
    assert (update.hint_due_at, update.next_check_at) == (NOW + 10 * MINUTE, sooner)


def test_a_hint_changes_nothing_of_an_order_that_ended() -> None:
    """Lune's API shows it open again: that is confirmed as ever, however fresh the hint."""
    update = decided(known("cancelled"), "placed", hint=hinted("paid", SECOND))
    assert (update.status, update.next_check_at) == ("cancelled", NOW + 6 * HOUR)


# Where it stands in its listing.


@pytest.mark.parametrize(
    ("recorded", "shown", "kept", "differs"),
    [
        (None, None, None, False),
        (None, 7, 7, True),
        (None, 0, 0, True),
        (7, None, 7, False),
        (7, 7, 7, False),
        (7, 8, 7, False),
        (0, 8, 0, False),
        (-3, 0, -3, False),
    ],
)
def test_a_position_is_kept_once_it_is_known(
    recorded: int | None, shown: int | None, kept: int | None, differs: bool
) -> None:
    before = known("paid", position=recorded)
    update = decide(before, served("paid"), NOW, SCHEDULE, position=shown)
    assert (update.position, update.differs) == (kept, differs)


@pytest.mark.parametrize("shown", [None, 7])
def test_a_new_order_stands_where_its_page_shows_it(shown: int | None) -> None:
    assert decide(None, served("paid"), NOW, SCHEDULE, position=shown).position == shown


# The date that the open orders of an answer share.


def chance(status: str, still_for: timedelta) -> float:
    return SCHEDULE.chance(status, still_for)


@pytest.mark.parametrize(
    ("before", "order", "chances"),
    [
        # Still since it was created, as far as anybody saw.
        (None, served("paid"), [chance("paid", 30 * DAY)]),
        (known("paid", changed_at=SEEN), served("paid"), [chance("paid", 30 * DAY)]),
        # Still since it was seen to move.
        (known("paid"), served("paid"), [chance("paid", 10 * DAY)]),
        (known("placed"), served("paid"), [chance("paid", timedelta(0))]),
        # A date of creation in the future is none.
        (None, served("paid", created_at=NOW + DAY), [chance("paid", timedelta(0))]),
        # What is not open, and what is where it cannot be, has no part in it.
        (None, served("complete"), []),
        (known("paid"), served("cancelled"), []),
        (known("paid"), served("placed"), []),
        (known("complete", STORED), served("paid"), []),
    ],
)
def test_what_an_order_adds_to_the_shared_date(
    before: KnownOrder | None, order: Order, chances: list[float]
) -> None:
    assert shared_check([(before, order)], NOW, SCHEDULE) == SCHEDULE.next_check(NOW, chances)


def test_the_shared_date_is_sooner_the_more_open_orders_there_are() -> None:
    old = replace(SCHEDULE, longest_interval=365 * DAY)
    answer = [(known("paid", changed_at=NOW - 400 * DAY), served("paid"))]
    alone, four = (shared_check(answer * count, NOW, old) - NOW for count in (1, 4))
    assert alone / four == pytest.approx(2)


def test_an_answer_without_open_orders_is_due_last_of_all() -> None:
    assert shared_check([], NOW, SCHEDULE) == NOW + 6 * HOUR


# What holds for anything that is served.

statuses = st.sampled_from([*STATUSES, "unheard of", ""])
instants = st.timedeltas(-400 * DAY, 400 * DAY).map(lambda offset: NOW + offset)
positions = st.none() | st.integers(-1000, 1000)
states = st.none() | st.sampled_from(CertificateState)
known_orders = st.builds(
    KnownOrder, statuses, instants, instants, st.none() | instants, states, positions,
    st.none() | instants,
)  # fmt: skip
served_orders = st.builds(served, statuses, created_at=instants)
hints = st.none() | st.builds(
    Hint, st.just("o1"), instants, st.none() | st.sampled_from(sorted(STATUS_OF_EVENT.values()))
)
schedules = st.sampled_from([SCHEDULE, EAGER])


def state_after(before: KnownOrder | None, update: OrderUpdate) -> CertificateState | None:
    if update.certificate is not None:
        return update.certificate.state
    return None if before is None else before.certificate_state


@given(st.none() | known_orders, served_orders, schedules, hints, positions)
def test_an_open_order_is_checked_again_in_time_and_one_that_ended_only_for_a_reason(
    before: KnownOrder | None,
    order: Order,
    schedule: Schedule,
    hint: Hint | None,
    position: int | None,
) -> None:
    update = decide(before, order, NOW, schedule, hint=hint, position=position)
    if is_open(update.status):
        assert update.next_check_at is not None
        assert NOW < update.next_check_at <= schedule.horizon(NOW)
    elif state_after(before, update) not in MISSING:
        expected = NOW + 6 * HOUR if isinstance(update.observation, Anomaly) else None
        assert update.next_check_at == expected


@given(known_orders, served_orders, schedules, hints)
def test_an_order_that_ended_never_moves(
    before: KnownOrder, order: Order, schedule: Schedule, hint: Hint | None
) -> None:
    update = decide(before, order, NOW, schedule, hint=hint)
    if before.status in TERMINAL:
        assert (update.move, update.status) == (None, before.status)
        assert update.changed_at == before.changed_at


@given(st.none() | known_orders, served_orders, schedules)
def test_a_complete_order_has_a_certificate_or_owes_one(
    before: KnownOrder | None, order: Order, schedule: Schedule
) -> None:
    update = decide(before, order, NOW, schedule)
    state = state_after(before, update)
    assert state is not None or update.status != "complete"
    assert state not in MISSING or schedule.owes_certificate(update.status)


@given(known_orders, served_orders, schedules, hints, positions)
def test_what_does_not_differ_changes_no_more_than_the_next_check(
    before: KnownOrder,
    order: Order,
    schedule: Schedule,
    hint: Hint | None,
    position: int | None,
) -> None:
    update = decide(before, order, NOW, schedule, hint=hint, position=position)
    if not update.differs:
        assert (update.status, update.changed_at) == (before.status, before.changed_at)
        assert update.position == before.position
        assert (update.move, update.anomaly, update.certificate) == (None, None, None)
        assert before.not_found_since is None


@given(st.none() | known_orders, served_orders, schedules, positions)
def test_the_same_answer_again_changes_nothing_more(
    before: KnownOrder | None, order: Order, schedule: Schedule, position: int | None
) -> None:
    first = decide(before, order, NOW, schedule, position=position)
    recorded = KnownOrder(
        first.status,
        first.changed_at,
        NOW if before is None else before.first_seen_at,
        first.next_check_at,
        state_after(before, first),
        first.position,
    )
    again = decide(recorded, order, NOW, schedule, position=position)
    assert (again.move, again.certificate) == (None, None)
    assert (again.status, again.changed_at) == (first.status, first.changed_at)
    assert (again.position, again.next_check_at) == (first.position, first.next_check_at)
    assert again.differs == isinstance(first.observation, Anomaly)
