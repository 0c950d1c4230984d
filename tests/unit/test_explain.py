from __future__ import annotations

import pytest

from harvester.domain.explain import waits_for
from harvester.domain.lifecycle import STATUSES, TERMINAL


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("received", "Lune to process it"),
        ("placed", "payment"),
        ("paid", "fractions pool"),
        ("retiring", "rest of the credits"),
        ("pending", "a status that it documents"),
    ],
)
@pytest.mark.parametrize("state", [None, "owed", "stored", "failed"])
def test_an_open_order_waits_for_its_next_step_whatever_its_certificate(
    status: str, words: str, state: str | None
) -> None:
    assert words in (waits_for(status, state, "a reason") or "")


@pytest.mark.parametrize("state", ["owed", "failed"])
def test_a_complete_order_waits_for_its_certificate_and_says_why(state: str) -> None:
    assert waits_for("complete", state, "Lune answers 404") == "its certificate (Lune answers 404)"
    assert waits_for("complete", state, None) == "its certificate (not asked for yet)"


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize("state", [None, "stored"])
def test_an_order_that_ended_and_owes_nothing_waits_for_nothing(
    status: str, state: str | None
) -> None:
    assert waits_for(status, state, None) is None


def test_every_open_status_has_words_of_its_own() -> None:
    open_statuses = [status for status in STATUSES if status not in TERMINAL]
    assert len({waits_for(status, None, None) for status in open_statuses}) == len(open_statuses)


@pytest.mark.parametrize(
    ("status", "document", "words"),
    [
        ("placed", {"payment_method": "invoice"}, "invoice is outstanding"),
        ("placed", {"payment_method": "card"}, "the card"),
        ("placed", {"payment_method": None}, "payment"),
        (
            "paid",
            {"bundles": [{"bundle_name": "Asia", "insufficient_available_quantity": True}]},
            "inventory, which is short in Asia",
        ),
        ("paid", {"quantity": "0.25"}, "less than a tonne"),
        ("paid", {"quantity": "1.25"}, "credits to be allocated"),
        (
            "retiring",
            {
                "projects": [
                    {"project_name": "Rimba", "status": "retired"},
                    {"project_name": "Keo", "status": "allocated"},
                ]
            },
            "credits to be retired in Keo (1 of 2 projects are retired)",
        ),
        ("retiring", {"projects": None, "bundles": "?", "quantity": {}}, "rest of the credits"),
    ],
)
def test_what_the_order_itself_says_makes_the_answer_exact(
    status: str, document: dict[str, object], words: str
) -> None:
    assert words in (waits_for(status, None, None, document) or "")
