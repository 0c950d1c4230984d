"""What a step of the harvest did; the daemon logs it, a drain adds it up."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class SweepReport:
    """One round over accounts: what was seen, what changed, which accounts could not be swept."""

    accounts: int = 0
    seen: int = 0
    new: int = 0
    changed: int = 0
    anomalies: int = 0
    rejected: dict[tuple[str, str], str] = field(default_factory=dict)
    parked: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, later: SweepReport) -> None:
        """Count a later round in: orders seen again count once more, faults that went are gone."""
        self.seen += later.seen
        self.new += later.new
        self.changed += later.changed
        self.anomalies += later.anomalies
        self.rejected |= later.rejected
        self.parked |= later.parked
        self.failed = later.failed


@dataclass(slots=True)
class CollectReport:
    """One round over missing certificates.

    ``storage`` says why the archive takes none, ``unreachable`` why Lune gives none, where that
    ended the round.
    """

    stored: int = 0
    recovered: int = 0
    not_yet: int = 0
    failed: int = 0
    bytes: int = 0
    storage: str | None = None
    unreachable: str | None = None

    def add(self, later: CollectReport) -> None:
        """Count a later round in."""
        self.stored += later.stored
        self.recovered += later.recovered
        self.not_yet += later.not_yet
        self.failed += later.failed
        self.bytes += later.bytes
        self.storage = later.storage
        self.unreachable = later.unreachable
