"""How what is set up at Lune is held against what is configured."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from harvester.cli.subscription import compare
from harvester.domain.lune_events import Subscription

URL = "https://hooks.example/webhooks/lune"
OURS = Subscription("w1", URL, True, "live", datetime(2026, 3, 1, 12, tzinfo=UTC), (), "abcd")
SECRETS = ("new-abcd", "old-wxyz")


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
