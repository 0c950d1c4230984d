"""The soak in twenty seconds, start and end included: about how it ends, not about slopes."""

from __future__ import annotations

from pathlib import Path

from tests.faults.soak import FAULTS, soak


async def test_a_daemon_under_faults_stores_everything_and_breaks_no_invariant(
    tmp_path: Path,
) -> None:
    result = await soak(tmp_path, seconds=15, every=1, orders=60)
    assert len(result.samples) >= 5
    assert result.samples[-1].stored > 0
    assert result.stored >= result.complete > 0
    assert result.simulated_years > 0.4
    assert len(result.faults) == len(FAULTS)
    assert sum(result.faults.values()) > 0
    assert {"rss_kib", "descriptors"} <= result.slopes.keys()
