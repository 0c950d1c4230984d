"""Alive and ready are two questions: Lune's troubles are none of the process's."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from harvester.context import Context, Limits, Stop, utc_now
from harvester.domain.errors import StorageUnavailable
from harvester.ledger.accounts import begin_sweep, finish_sweep, read_accounts
from harvester.liveness import Check, Liveness, StepHungError
from harvester.lune import ClientOptions
from harvester.sandbox import Sandbox
from harvester.web.health import Health, Probe
from tests.contract.ledger_cases import SCHEDULE
from tests.integration.conftest import OpenApp
from tests.integration.raw_server import Naps
from tests.integration.web_service import serving


def wrong(checks: Sequence[Check]) -> list[str]:
    return [check.name for check in checks if check.cause is not None]


def watching(limits: Limits, requests: Callable[[], int] = lambda: 0) -> tuple[Liveness, Stop]:
    """Make what watches the loop and one step, a sweep that has begun; and what ends it."""
    stop = Stop()
    liveness = Liveness(Context(SCHEDULE, stop, limits=limits), requests)
    liveness.expect("sweep", 60.0)
    liveness.began("sweep")
    return liveness, stop


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
        assert "archive" in check["cause"]
        (tmp_path / "elsewhere").rename(tmp_path / "archive")


async def test_a_fresh_service_is_not_ready_before_its_first_good_sweep(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.faults.add("server-errors,share=1")
    async with serving(sandbox, tmp_path, options=ClientOptions(sleep=Naps())) as service:
        status, _, body = await service.get("/readyz")
        assert status == 503
        assert json.loads(body)["checks"]["sweep"]["cause"] == "no account was swept yet"


async def test_an_old_sweep_is_not_ready(opened: OpenApp) -> None:
    async with opened(sweep_interval="15m") as app:
        await app.accounts.accounts()
        health = Health(app, watching(Limits())[0], app.database)
        assert wrong(await health.ready()) == ["sweep"]  # none yet
        for age, names in ((34, []), (36, ["sweep"])):
            now = utc_now()
            for account in await read_accounts(app.database):
                mark, at = await begin_sweep(app.database, account.id), now - timedelta(minutes=age)
                await finish_sweep(app.database, account.id, mark, at, now, joined=True)
            assert wrong(await health.ready()) == names
        await health.close()


async def test_a_late_loop_and_a_silent_step_are_not_alive(opened: OpenApp) -> None:
    liveness, _ = watching(Limits(step_timeout=0.2))
    async with opened() as app:
        health = Health(app, liveness, app.database)
        assert wrong(health.live()) == []
        liveness.lag = 11.0
        assert wrong(health.live()) == ["loop"]
        with pytest.raises(StepHungError, match="sweep does nothing"):
            await liveness.run(lambda: None)
        assert wrong(health.live()) == ["sweep"]


async def test_a_step_that_asks_lune_for_hours_is_alive(opened: OpenApp) -> None:
    asked = itertools.count(1)
    liveness, stop = watching(Limits(step_timeout=0.2), lambda: next(asked))
    looks: list[list[str]] = []
    async with opened() as app:
        health = Health(app, liveness, app.database)

        def looked() -> None:
            looks.append(wrong(health.live()))
            if len(looks) == 4:  # several times as long as a silent step would have
                stop.request()

        await asyncio.wait_for(liveness.run(lambda: None, looked), 20)
    assert looks == [[]] * 4


async def test_a_probe_is_not_tried_twice_at_a_time_nor_again_at_once() -> None:
    tries = 0
    hang = asyncio.Event()

    async def work() -> None:
        nonlocal tries
        tries += 1
        await hang.wait()
        raise StorageUnavailable("the disk is full")

    probe = Probe("archive", work, timeout=0.05)
    first, second = await asyncio.gather(probe.check(), probe.check())
    assert first == second == Check("archive", "no answer within 0.05 s")
    hang.set()
    await asyncio.sleep(0)
    assert await probe.check() == Check("archive", "the disk is full")
    assert await probe.check() == Check("archive", "the disk is full")
    assert tries == 1
    await probe.close()


async def test_a_probe_that_hangs_ends_with_the_service() -> None:
    probe = Probe("archive", asyncio.Event().wait, timeout=0.05)  # type: ignore[arg-type]  # a check that hangs, and so never returns
    await probe.check()
    await asyncio.wait_for(probe.close(), 5)
