"""Alive and ready are two questions: Lune's troubles are none of the process's."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from harvester.domain.errors import StorageUnavailable
from harvester.sandbox import Sandbox
from harvester.web.health import Check, Health, Probe
from tests.integration.web_service import serving


class Steps:
    """Stands where the daemon's watch stands."""

    def __init__(self, lag: float = 0.0, **ages: float) -> None:
        self.lag = lag
        self.ages = ages


async def nothing() -> None:
    return None


def health_of(steps: Steps | None = None, **changed: Any) -> Health:
    async def age() -> timedelta:
        return timedelta(seconds=1)

    parts: dict[str, Any] = {
        "progress": steps or Steps(),
        "requests": lambda: 0,
        "key_refused": lambda: False,
        "sweep_age": age,
        "sweep_interval": timedelta(minutes=15),
        "probes": [],
    }
    return Health(**parts | changed)


def wrong(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.why is not None]


async def test_a_service_that_works_is_alive_and_ready(sandbox: Sandbox, tmp_path: Path) -> None:
    async with serving(sandbox, tmp_path) as service:
        await service.until(lambda: _ready(service))
        status, _, body = await service.get("/healthz", headers={})
        assert (status, json.loads(body)["ok"]) == (200, True)
        status, _, body = await service.get("/readyz", headers={})
        assert status == 200
        assert set(json.loads(body)["checks"]) == {"key", "sweep", "ledger", "archive"}


async def _ready(service: Any) -> bool:
    return bool((await service.json("/readyz"))["ok"])


async def test_a_refused_key_is_not_ready_and_alive_all_the_same(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with serving(sandbox, tmp_path) as service:
        await service.until(lambda: _ready(service))
        sandbox.faults.add("revoked-key")

        async def refused() -> bool:
            status, _, body = await service.get("/readyz")
            return status == 503 and not json.loads(body)["checks"]["key"]["ok"]

        await service.until(refused)
        status, _, _ = await service.get("/healthz")
        assert status == 200


async def test_an_archive_that_is_gone_is_not_ready_and_says_why(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with serving(sandbox, tmp_path) as service:
        (tmp_path / "archive").rename(tmp_path / "elsewhere")
        status, _, body = await service.get("/readyz")
        check = json.loads(body)["checks"]["archive"]
        assert status == 503
        assert "archive" in check["why"]
        (tmp_path / "elsewhere").rename(tmp_path / "archive")


async def test_a_fresh_service_is_not_ready_before_its_first_good_sweep(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.faults.add("server-errors,share=1")
    async with serving(sandbox, tmp_path) as service:
        status, _, body = await service.get("/readyz")
        assert status == 503
        assert json.loads(body)["checks"]["sweep"]["why"] == "no account was swept yet"


async def test_an_old_sweep_is_not_ready() -> None:
    async def age() -> timedelta:
        return timedelta(minutes=36)

    assert wrong(await health_of(sweep_age=age).ready()) == ["sweep"]
    assert wrong(await health_of().ready()) == []


async def test_a_late_loop_and_a_silent_step_are_not_alive() -> None:
    assert wrong(await health_of(Steps(lag=11.0)).live()) == ["loop"]
    clock = iter((0.0, 1000.0))
    silent = health_of(Steps(sweep=1000.0, collect=1.0), monotonic=lambda: next(clock))
    assert wrong(await silent.live()) == ["sweep"]


async def test_a_step_that_asks_lune_for_hours_is_alive() -> None:
    clock, asked = iter((0.0, 20_000.0)), iter((1, 2))
    busy = health_of(
        Steps(sweep=20_000.0), requests=lambda: next(asked), monotonic=lambda: next(clock)
    )
    assert wrong(await busy.live()) == []


async def test_a_probe_is_not_tried_twice_at_a_time_nor_again_at_once() -> None:
    tries = 0
    hang = asyncio.Event()

    async def work() -> None:
        nonlocal tries
        tries += 1
        await hang.wait()
        raise StorageUnavailable("the disk is full")

    probe = Probe("archive", work, patience=0.05)
    first, second = await asyncio.gather(probe.check(), probe.check())
    assert first == second == Check("archive", "no answer within 0.05 s")
    hang.set()
    await asyncio.sleep(0)
    assert await probe.check() == Check("archive", "the disk is full")
    assert await probe.check() == Check("archive", "the disk is full")
    assert tries == 1
    await probe.close()


async def test_a_probe_that_hangs_ends_with_the_service() -> None:
    probe = Probe("archive", asyncio.Event().wait, patience=0.05)  # type: ignore[arg-type]  # a check that hangs, and so never returns
    await probe.check()
    await asyncio.wait_for(probe.close(), 5)
