"""What Lune's webhooks mean: when a hint is answered, when webhooks are known to work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from harvester.domain.lune_events import Hint, is_answered, next_check_of_hint
from harvester.ledger.hints import WebhookHealth

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("hinted", "served", "answered"),
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
    hinted: str | None, served: str, answered: bool
) -> None:
    assert is_answered(Hint("o", NOW, hinted), served) is answered


def test_a_hint_is_asked_about_again_ever_more_rarely_and_then_no_more() -> None:
    hint, at, waits = Hint("o", NOW, "complete"), NOW, []
    while (again := next_check_of_hint(hint, at)) is not None:
        waits.append((again - at).total_seconds())
        at = again
    assert waits[:4] == [2, 2, 4, 8]
    assert max(waits) <= 600
    assert len(waits) < 20
    assert next_check_of_hint(hint, NOW - timedelta(hours=1)) is None  # the clock stepped back


def test_webhooks_work_when_some_came_and_nothing_moved_without_one() -> None:
    assert WebhookHealth(NOW, 0).work
    assert not WebhookHealth(NOW, 1).work
    assert not WebhookHealth(None, 0).work
