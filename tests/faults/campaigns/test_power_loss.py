"""The power is cut everywhere in a recorded run: nothing is lost, and weaker variants are caught.

A bounded run of ``python -m tests.faults.power_loss``.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.campaigns.power_cuts import Extent, Outcome
from tests.faults.campaigns.storage_variants import VARIANTS
from tests.faults.power_loss import recorded_campaign
from tests.needs import need

SHORT = Extent(every=False)
RECOVERIES = 6


@dataclass(frozen=True, slots=True)
class Checked:
    """What a recording came to: each variant's outcome, and a recovery that was crashed too."""

    outcomes: dict[str, Outcome]
    again: Outcome


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """Record once, for all tests here; every state that is kept is recovered from."""
    need(shutil.which("strace"), "strace")
    return asyncio.run(check_all(tmp_path_factory.mktemp("power-loss")))


async def check_all(folder: Path) -> Checked:
    async with recorded_campaign(folder) as campaign:
        outcomes = {name: campaign.crash(name, SHORT) for name in VARIANTS if name != "full"}
        full = campaign.crash("full", Extent(every=False, keep=RECOVERIES))
        for state, _ in full.kept:
            await campaign.recover(state)
        again = await campaign.crash_again(*full.kept[0], Extent(every=False, keep=1))
        for state, _ in again.kept:
            await campaign.recover(state)
        return Checked(outcomes | {"full": full}, again)


def test_nothing_acknowledged_or_stored_is_lost_or_torn_by_a_power_cut(checked: Checked) -> None:
    full = checked.outcomes["full"]
    assert full.examples == {}
    assert full.states > 200
    assert len(full.kept) == RECOVERIES


def test_nothing_is_lost_when_the_power_fails_again_during_recovery(checked: Checked) -> None:
    assert checked.again.examples == {}
    assert checked.again.states > 20


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "full"])
def test_a_weaker_variant_is_caught(checked: Checked, name: str) -> None:
    assert VARIANTS[name].breaks in checked.outcomes[name].violations
