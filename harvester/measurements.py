"""How long things took, for the metrics: histograms that the parts fill as they work."""

from __future__ import annotations

from typing import Final

from prometheus_client import Histogram

_WRITES: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SWEEPS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
_DELAYS: Final = (1, 5, 15, 60, 300, 900, 3600, 21_600, 86_400, 259_200, 1_209_600)


class Measurements:
    """Histograms of one process, in no registry until somebody scrapes them."""

    def __init__(self) -> None:
        self.ledger_writes = Histogram(
            "harvester_ledger_write_seconds",
            "How long writes to the ledger took, from asking to durable.",
            buckets=_WRITES,
            registry=None,
        )
        self.sweeps = Histogram(
            "harvester_sweep_duration_seconds",
            "How long sweeps took.",
            buckets=_SWEEPS,
            registry=None,
        )
        self.certificate_delays = Histogram(
            "harvester_certificate_delay_seconds",
            "How long certificates were owed, from the order seen complete to the file stored.",
            buckets=_DELAYS,
            registry=None,
        )
