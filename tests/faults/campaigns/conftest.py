"""What campaigns need of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disks import TRACER
from tests.faults.injected_faults import ForkServer, start_fork_server
from tests.needs import need


@pytest.fixture(scope="session")
def traceable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the tracer does not know the machine, or may not trace."""
    need(platform.machine() == "x86_64", "an x86-64 machine")
    report: Path = tmp_path_factory.mktemp("tracer") / "report.json"
    command = (sys.executable, "-S", TRACER, "--report", report, "true")
    subprocess.run(command, check=False, capture_output=True)
    need(report.exists() and '"code": 0' in report.read_text(), "permission to trace")


@pytest.fixture(scope="session")
def fork_server(traceable: None) -> Iterator[ForkServer]:
    """Start the server in which all campaigns here run their commands."""
    with start_fork_server() as started:
        yield started
