"""The power is cut everywhere in a recorded run; the recipe holds, and every weaker one is caught.

A bounded run of ``python -m tests.faults.power_loss``.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.campaigns.crashes import Extent, Outcome
from tests.faults.campaigns.recipes import RECIPES
from tests.faults.power_loss import recorded_campaign
from tests.needs import need

SHORT = Extent(every=False)
RECOVERIES = 6


@dataclass(frozen=True, slots=True)
class Played:
    """What a recording came to: each recipe's outcome, and a recovery that was crashed too."""

    outcomes: dict[str, Outcome]
    again: Outcome


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Record once, for all tests here; every state that is kept is recovered from."""
    need(shutil.which("strace"), "strace")
    return asyncio.run(play(tmp_path_factory.mktemp("power-loss")))


async def play(folder: Path) -> Played:
    async with recorded_campaign(folder) as campaign:
        outcomes = {name: campaign.crash(name, SHORT) for name in RECIPES if name != "full"}
        full = campaign.crash("full", Extent(every=False, keep=RECOVERIES))
        for state, _ in full.kept:
            await campaign.recover(state)
        again = await campaign.crash_again(*full.kept[0], Extent(every=False, keep=1))
        for state, _ in again.kept:
            await campaign.recover(state)
        return Played(outcomes | {"full": full}, again)


def test_nothing_acknowledged_or_filed_is_lost_or_torn_by_a_power_cut(played: Played) -> None:
    full = played.outcomes["full"]
    assert full.examples == {}
    assert full.states > 200
    assert len(full.kept) == RECOVERIES


def test_nothing_is_lost_when_the_power_fails_again_during_recovery(played: Played) -> None:
    assert played.again.examples == {}
    assert played.again.states > 20


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "full"])
def test_a_weaker_recipe_is_caught(played: Played, name: str) -> None:
    assert RECIPES[name].breaks in played.outcomes[name].violations
