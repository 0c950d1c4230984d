"""Twenty rounds of the kill loop."""

from __future__ import annotations

from pathlib import Path

from tests.faults.kill_loop import kill_over_and_over

ROUNDS = 20


async def test_killed_in_twenty_rounds_it_stores_every_certificate_once(tmp_path: Path) -> None:
    loop = await kill_over_and_over(tmp_path, ROUNDS, seed=7)
    assert loop.violations == []
    assert loop.killed > ROUNDS * 3 // 4
    assert loop.certificates >= ROUNDS
    assert loop.recovered > 0, "no kill ever came between a file and its row"
