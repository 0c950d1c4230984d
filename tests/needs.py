"""What a test needs of the machine: skipped by name without it, or failed where it may not be."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def cannot(reason: str) -> NoReturn:
    """Skip, or fail where the machine is meant to be able to run everything."""
    if os.environ.get("HARVESTER_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


def need(present: object, what: str) -> None:
    """Go on only when it is there."""
    if not present:
        cannot(f"needs {what}")
