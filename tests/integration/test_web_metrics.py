"""Metrics: what they count, how few they are, and that alerts and dashboard name real ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from harvester.app import App
from harvester.context import utc_now
from harvester.domain.errors import KeyRefused, NotFound
from harvester.domain.events import EventFilter
from harvester.ledger.accounts import begin_sweep, finish_sweep, park_account, postpone_sweep
from harvester.ledger.events import read_events
from harvester.ledger.outbox import read_backlogs, register_receivers
from harvester.ledger.statistics import read_statistics
from harvester.lune.request_counts import RequestCounts
from harvester.runtime.drain import Drain
from harvester.sandbox import Sandbox
from harvester.web.metrics import Metrics
from tests.integration.conftest import OpenApp
from tests.integration.web_service import Service, serving
from tests.needs import need

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
A_HOOK = {"hooks": [{"name": "billing", "command": ["true"]}]}
NAME = re.compile(r"\b(?:harvester|process)_[a-z_]+")

Samples = dict[tuple[str, tuple[str, ...]], float]


def parsed(text: str) -> Samples:
    """Return the samples of a scrape by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(service: Service) -> Samples:
    status, _, body = await service.get("/metrics", headers={})
    assert status == 200
    return parsed(body.decode())


async def test_a_scrape_counts_what_there_is(sandbox: Sandbox, tmp_path: Path) -> None:
    for number in range(3):
        sandbox.create_order("paid", hold=True, idempotency_key=f"INV-{number}")
    sandbox.create_order("complete", hold=True)
    async with serving(sandbox, tmp_path) as service:
        await service.stored(1)
        samples = await scraped(service)
    assert samples["harvester_orders", ("paid",)] == 3
    assert samples["harvester_orders", ("cancelled",)] == 0
    assert samples["harvester_certificates", ("stored",)] == 1
    assert samples["harvester_certificate_delay_seconds_count", ()] == 1
    assert samples["harvester_lune_requests_total", ("GET /orders/{}/certificate", "ok")] == 1
    assert samples["harvester_ready", ("archive",)] == 1
    assert samples["harvester_ledger_write_seconds_count", ()] > 0
    assert samples["harvester_sweep_duration_seconds_count", ()] > 0
    assert samples["harvester_ledger_bytes", ("wal",)] > 0
    assert samples["harvester_disk_free_bytes", ("archive",)] > 0
    since = samples["harvester_oldest_order_timestamp_seconds", ("paid",)]
    assert abs(since - utc_now().timestamp()) < 60


async def test_statuses_that_lune_does_not_document_are_one_label(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    for _ in range(5):
        sandbox.create_order("paid", hold=True)
    sandbox.faults.add("unknown-status=evil-text,share=1")
    async with serving(sandbox, tmp_path) as service:

        async def seen() -> bool:
            return len((await service.json("/v1/orders?status=evil-text"))["orders"]) == 5

        await service.until(seen)
        _, _, body = await service.get("/metrics", headers={})
    samples = parsed(body.decode())
    assert samples["harvester_orders", ("other",)] == 5
    assert samples["harvester_anomalies_total", ("unknown_status",)] == 5
    assert b"evil-text" not in body


async def test_a_scrape_shows_nobody_and_stays_small(sandbox: Sandbox, tmp_path: Path) -> None:
    secrets = {sandbox.key, *(account.id for account in sandbox.accounts)}
    for number in range(50):
        secrets.add(sandbox.create_order("complete", hold=True, idempotency_key=f"K{number}").id)
    async with serving(sandbox, tmp_path) as service:
        await service.stored(50)
        _, _, body = await service.get("/metrics", headers={})
    assert not [one for one in secrets if one.encode() in body]
    assert len(parsed(body.decode())) < 300


async def test_a_second_scrape_at_once_reads_no_ledger(opened: OpenApp, sandbox: Sandbox) -> None:
    async with opened() as app:
        metrics = Metrics(app, app.database)
        await metrics.refresh()
        sandbox.create_order("paid", hold=True)
        await Drain(app).run()
        await metrics.refresh()
        paid = metrics.registry.get_sample_value("harvester_orders", {"status": "paid"})
        assert paid == 0  # as it was a moment ago


async def test_a_drain_writes_its_metrics_whole_for_the_textfile_collector(
    opened: OpenApp, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.create_order("complete", hold=True)
    file = tmp_path / "harvester.prom"
    file.write_text("what was there before\n")
    async with opened() as app:
        metrics = Metrics(app, app.database)
        await metrics.begin()
        await Drain(app).run()
        await metrics.write(file)
    samples = parsed(file.read_text())
    assert samples["harvester_certificates", ("stored",)] == 1
    assert samples["harvester_certificate_delay_seconds_count", ()] == 1
    assert [path.name for path in tmp_path.glob("harvester.prom*")] == ["harvester.prom"]


async def last_sweep(app: App, now: datetime, bound: timedelta) -> datetime | None:
    async with app.database.read() as connection:
        return (await read_statistics(connection, now)).last_sweep_at(now, bound)


async def test_the_sweep_that_counts_is_that_of_the_followed_account_that_waits_longest(
    opened: OpenApp, sandbox: Sandbox
) -> None:
    bound = timedelta(minutes=30)
    async with opened() as app:
        at = utc_now()
        assert await last_sweep(app, at, bound) is None
        await Drain(app).run()
        swept = await last_sweep(app, utc_now(), bound)
        assert swept is not None
        assert at <= swept <= utc_now()
        first, second = sandbox.accounts
        later = utc_now() + timedelta(hours=2)
        # Planned anew and again, but never well: this account is the one that counts.
        await postpone_sweep(app.database, first.id, later)
        mark = await begin_sweep(app.database, second.id)
        await finish_sweep(app.database, second.id, mark, later, later, joined=True)
        swept = await last_sweep(app, later, bound)
        assert swept is not None
        assert swept < later
        await park_account(app.database, first.id, "suspended", later, later)
        assert await last_sweep(app, later, bound) == later


async def test_what_a_receiver_has_not_accepted_is_counted_and_dated(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    content = {"name": "content", "command": ["true"]}
    failing = {"name": "failing", "command": ["false"], "types": ["certificate.stored"]}
    began = utc_now().timestamp()
    for _ in range(3):
        sandbox.create_order("complete", hold=True)
    sandbox.create_order("paid", hold=True)
    async with serving(sandbox, tmp_path, events={"hooks": [content, failing]}) as service:
        await service.stored(3)

        async def counted() -> bool:
            samples = await scraped(service)
            return samples["harvester_outbox_events", ("content",)] == 0

        await service.until(counted, 40)
        samples = await scraped(service)
    assert samples["harvester_outbox_events", ("failing",)] == 3
    oldest = "harvester_outbox_oldest_event_timestamp_seconds"
    assert began <= samples[oldest, ("failing",)] <= utc_now().timestamp()
    assert abs(samples[oldest, ("content",)] - utc_now().timestamp()) < 60


async def test_only_events_that_a_receiver_wants_are_in_its_backlog(
    opened: OpenApp, sandbox: Sandbox
) -> None:
    sandbox.create_order("complete", hold=True)
    wanting = {
        "desk": EventFilter(frozenset({"certificate.stored"})),
        "billing": EventFilter(accounts=frozenset({"another"})),
        "all": EventFilter(),
    }
    async with opened() as app:
        await register_receivers(app.database, wanting | {"dropped": EventFilter()})
        assert await register_receivers(app.database, wanting) == ["dropped"]
        await Drain(app).run()
        found = await read_backlogs(app.database)
        kept = (await read_events(app.database, 0, 100)).events
    depths = {name: backlog.depth for name, backlog in found.items()}
    assert depths == {"desk": 1, "billing": 0, "all": len(kept)}
    assert found["billing"].since is None
    assert found["all"].since == min(event.at for event in kept)
    (stored,) = [event for event in kept if event.type == "certificate.stored"]
    assert found["desk"].since == stored.at


async def test_the_bound_of_a_sweeps_age_is_the_one_that_readiness_has(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with serving(sandbox, tmp_path, sweep_interval="20m") as service:
        samples = await scraped(service)
    assert samples["harvester_oldest_good_sweep_seconds", ()] == 45 * 60


def test_requests_are_counted_by_endpoint_and_outcome_without_ids() -> None:
    counts = RequestCounts()
    with counts.counting("GET", "/orders/abc/certificate"):
        pass
    for error in (
        NotFound("none", method="GET", path="/x", status=404),
        KeyRefused("not asked", method="GET", path="/x"),
    ):
        with pytest.raises(type(error)), counts.counting("GET", "/orders/abc"):
            raise error
    with (
        pytest.raises(ZeroDivisionError),
        counts.counting("GET", "/orders/by-idempotency-key/K"),
    ):
        raise ZeroDivisionError
    assert dict(counts) == {
        ("GET /orders/{}/certificate", "ok"): 1,
        ("GET /orders/{}", "not_found"): 1,
    }


def test_alerts_and_dashboard_are_about_everything_that_was_asked_for() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))
    named = {rule["alert"].removeprefix("Harvester") for rule in rules["groups"][0]["rules"]}
    assert named >= {
        "KeyRefused",
        "ArchiveNotWritable",
        "CertificateOwedTooLong",
        "SweepTooOld",
        "Anomalies",
        "RateLimited",
        "LoopLate",
    }


async def test_every_metric_that_alerts_and_dashboard_name_is_in_a_scrape(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.create_order("complete", hold=True)
    async with serving(sandbox, tmp_path, events=A_HOOK) as service:
        await service.stored(1)
        names = {name for name, _ in await scraped(service)}
    for file in ("alerts.yml", "dashboard.json"):
        asked = {name for query in _queries(file) for name in NAME.findall(query)}
        assert len(asked) > 10
        assert asked <= names, f"{file}: {sorted(asked - names)}"


def _queries(file: str) -> Iterator[str]:
    text = (MONITORING / file).read_text("utf-8")
    if file.endswith(".yml"):
        yield from (rule["expr"] for rule in yaml.safe_load(text)["groups"][0]["rules"])
        return
    board: dict[str, Any] = json.loads(text)
    yield from (variable["definition"] for variable in board["templating"]["list"][1:])
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_promtool_takes_the_alerts() -> None:
    need(shutil.which("promtool"), "promtool (package prometheus)")
    subprocess.run(["promtool", "check", "rules", MONITORING / "alerts.yml"], check=True)


def test_promtool_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    need(shutil.which("promtool"), "promtool (package prometheus)")
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(_queries("dashboard.json"))
        if not query.startswith("label_values")
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", file], check=True)


async def test_promtool_takes_a_scrape(sandbox: Sandbox, tmp_path: Path) -> None:
    need(shutil.which("promtool"), "promtool (package prometheus)")
    async with serving(sandbox, tmp_path) as service:
        _, _, body = await service.get("/metrics", headers={})
    subprocess.run(["promtool", "check", "metrics"], input=body, check=True)
