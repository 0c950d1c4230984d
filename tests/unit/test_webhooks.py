"""What a hint is worth, and how what is set up at Lune is held against what is configured."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from harvester.cli.subscription import compare
from harvester.domain.lune_events import Hint, Subscription, is_answered, next_check_of_hint
from harvester.domain.schedule import Schedule
from harvester.ledger.hints import WebhookHealth

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
URL = "https://hooks.example/webhooks/lune"
OURS = Subscription("w1", URL, True, "live", NOW, (), "abcd")
SECRETS = ("new-abcd", "old-wxyz")


@pytest.mark.parametrize(
    ("announced", "served", "answered"),
    [
        (None, "paid", True),
        ("retiring", "paid", False),
        ("retiring", "retiring", True),
        ("retiring", "complete", True),
        ("complete", "cancelled", True),
        ("complete", "retiring", False),
        ("cancelled", "placed", False),
        ("complete", "settling", False),
    ],
)
def test_a_hint_is_answered_once_the_api_says_as_much_or_more(
    announced: str | None, served: str, answered: bool
) -> None:
    assert is_answered(Hint("o", NOW, announced), served) is answered


def test_a_hint_is_asked_about_again_ever_more_rarely_and_then_no_more() -> None:
    hint, at, waits = Hint("o", NOW, "complete"), NOW, []
    while (again := next_check_of_hint(hint, at)) is not None:
        waits.append((again - at).total_seconds())
        at = again
    assert waits[:4] == [2, 2, 4, 8]
    assert max(waits) <= 600
    assert len(waits) < 20
    assert next_check_of_hint(hint, NOW - timedelta(hours=1)) is None  # the clock stepped back


@pytest.mark.parametrize(
    ("sweep", "longest", "announced"),
    [("15m", "6h", "1h"), ("2h", "6h", "6h"), ("6h", "6h", "6h")],
)
def test_sweeps_are_four_times_rarer_within_the_longest_interval(
    sweep: str, longest: str, announced: str
) -> None:
    units = {"m": 60, "h": 3600}

    def span(text: str) -> timedelta:
        return timedelta(seconds=int(text[:-1]) * units[text[-1]])

    cadence = Schedule(span(sweep), span(longest))
    assert cadence.next_sweep(NOW) == NOW + span(sweep)
    assert cadence.next_sweep(NOW, announced=True) == NOW + span(announced)
    assert cadence.next_sweep(NOW, announced=True) <= cadence.horizon(NOW)


def test_webhooks_work_when_some_came_and_nothing_moved_without_one() -> None:
    assert WebhookHealth(NOW, 0).work
    assert not WebhookHealth(NOW, 1).work
    assert not WebhookHealth(None, 0).work


@pytest.mark.parametrize(
    ("found", "url", "level", "words"),
    [
        ([OURS], URL, "ok", "pushed to"),
        ([OURS], "", "ok", "pushed to"),
        ([], URL, "warning", "none is registered"),
        ([replace(OURS, url="https://old.example/webhooks/lune")], URL, "warning", "old.example"),
        ([replace(OURS, enabled=False)], URL, "warning", "disabled"),
        ([replace(OURS, secret="????")], URL, "warning", "not one of ours"),
        ([replace(OURS, secret="wxyz")], URL, "warning", "not our newest"),
    ],
)
def test_drift_between_lune_and_us_is_named(
    found: list[Subscription], url: str, level: str, words: str
) -> None:
    judged, text = compare(found, SECRETS, url)
    assert judged == level
    assert words in text
