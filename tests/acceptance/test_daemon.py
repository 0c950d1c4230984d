"""``run``: the service, from its first line to its last."""

from __future__ import annotations

import asyncio
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, Ran, hurry, until

ENDED = ("complete", "cancelled", "failed")
KEY = "CANARY-api-key"
METADATA = "CANARY-metadata"
EMAIL = "CANARY-person@example.com"
FAULTS = (
    "server-errors,share=1,times=1",
    "html-certificate,times=2",
    "malformed-order,times=2",
    "hostile-ids,times=2",
    "backward,times=1",
    "unknown-status,times=1",
)


@dataclass(frozen=True, slots=True)
class Story:
    """What a daemon did from a start on nothing to the end of every order."""

    ended: Ran
    logged: tuple[dict[str, Any], ...]
    shown: dict[str, Any]
    files: set[str]
    socket_mode: int
    socket_left: bool
    status_meanwhile: Any
    status_afterwards: Any
    pid: int


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return asyncio.run(_live_through(tmp_path_factory.mktemp("story")))


async def _live_through(folder: Path) -> Story:
    options = SandboxOptions(orders=7, client_accounts=1, speed=0, rate_limit=0, key=KEY)
    async with Sandbox(options) as lune:
        home = Home(folder, lune, harvest__sweep_interval="500ms", harvest__longest_interval="1s")
        home.configure(log__level="debug")
        async with home.daemon() as daemon:
            socket = home.ledger.with_name(home.ledger.name + ".socket")
            await until(socket.is_socket)
            mode = stat.S_IMODE(socket.stat().st_mode)
            await until(lambda: daemon.events("sweep finished"))
            hurry(lune, 4)
            meanwhile = (await home.run("status", "--json")).document()
            ids = [order.id for account in lune.accounts for order in lune.orders(account.id)]
            complete = [name for name in ids if lune.order(name).life.path[-1] == "complete"]
            await until(lambda: len(daemon.events("certificate stored")) == len(complete))
            await until(lambda: _have_ended(daemon.events()) == set(ids))
            # A round of collecting counts in the first sweep's line after its end.
            await until(lambda: _stored(daemon.events("sweep finished")) >= len(complete))
            ended = await daemon.end()
        return Story(
            ended=ended,
            logged=tuple(daemon.events()),
            shown=dict(zip(ids, await asyncio.gather(*map(home.show, ids)), strict=True)),
            files=home.files(),
            socket_mode=mode,
            socket_left=socket.exists(),
            status_meanwhile=meanwhile,
            status_afterwards=(await home.run("status", "--json")).document(),
            pid=daemon.process.pid,
        )


def _stored(sweeps: list[dict[str, Any]]) -> int:
    return sum(sweep["stored"] for sweep in sweeps)


def _have_ended(logged: list[dict[str, Any]]) -> set[str]:
    return {
        one["order"] for one in logged if one["event"] == "order moved" and one["after"] in ENDED
    }


def test_it_follows_every_order_to_its_end_and_sigterm_exits_0(story: Story) -> None:
    assert (story.ended.code, story.ended.out) == (0, "")
    assert {one["status"] for one in story.shown.values()} <= set(ENDED)
    complete = {name for name, one in story.shown.items() if one["status"] == "complete"}
    assert len(story.files) == len(complete)
    assert {Path(name).stem for name in story.files} == complete


def test_its_socket_is_its_user_s_alone_and_goes_with_it(story: Story) -> None:
    assert story.socket_mode == 0o600
    assert not story.socket_left


def test_every_line_of_its_log_is_json_with_an_event_a_level_and_an_instant(story: Story) -> None:
    lines = story.ended.err.splitlines()
    assert len(lines) == len(story.logged)
    assert all({"event", "level", "timestamp"} <= set(event) for event in story.logged)
    assert all(event["timestamp"].endswith("Z") for event in story.logged)
    assert [story.logged[0]["event"], story.logged[-1]["event"]] == ["ledger created", "stopped"]


def test_it_logs_one_line_per_transition(story: Story) -> None:
    recorded = Counter(
        (name, step["from"], step["to"], step["source"])
        for name, one in story.shown.items()
        for step in one["transitions"]
    )
    logged = Counter(
        (event["order"], event["before"], event["after"], event["source"])
        for event in story.logged
        if event["event"] == "order moved"
    )
    assert logged == recorded
    assert all(times == 1 for times in logged.values())


def test_it_logs_one_line_per_stored_certificate(story: Story) -> None:
    recorded = Counter(
        (name, file["version"], file["sha256"])
        for name, one in story.shown.items()
        for file in one["certificates"]
    )
    logged = Counter(
        (event["order"], event["version"], event["sha256"])
        for event in story.logged
        if event["event"] == "certificate stored"
    )
    assert logged == recorded


def test_it_logs_one_line_per_sweep_and_they_add_up(story: Story) -> None:
    sweeps = [event for event in story.logged if event["event"] == "sweep finished"]
    assert len(sweeps) > 1
    keys = {"accounts", "orders", "changed", "stored", "failed", "requests", "seconds"}
    assert all(keys <= set(sweep) for sweep in sweeps)
    assert sweeps[0]["accounts"] == 2
    assert sweeps[0]["orders"] == len(story.shown)
    moved = sum(len(one["transitions"]) - 1 for one in story.shown.values())
    assert sum(sweep["changed"] for sweep in sweeps) == moved
    assert _stored(sweeps) == len(story.files)
    assert sum(sweep["failed"] for sweep in sweeps) == 0


def test_the_chains_have_no_gap_and_start_from_nothing(story: Story) -> None:
    for one in story.shown.values():
        chain = one["transitions"]
        assert [step["seq"] for step in chain] == list(range(1, len(chain) + 1))
        assert [step["from"] for step in chain] == [None, *(step["to"] for step in chain[:-1])]
        assert chain[-1]["to"] == one["status"]
        assert {step["source"] for step in chain} <= {"sweep", "check"}


def test_status_names_the_daemon_while_it_runs_and_nobody_afterwards(story: Story) -> None:
    assert story.status_meanwhile["daemon"]["pid"] == story.pid
    assert story.status_meanwhile["daemon"]["command"] == "run"
    assert story.status_afterwards["daemon"] is None
    assert story.status_afterwards["orders"].keys() <= set(ENDED)
    assert story.status_afterwards["certificates"]["stored"] == len(story.files)
    assert all(account["last_sweep_at"] for account in story.status_afterwards["accounts"])


async def test_no_key_no_address_and_no_metadata_is_logged_whatever_goes_wrong(
    tmp_path: Path,
) -> None:
    options = SandboxOptions(orders=14, speed=0, rate_limit=0, key=KEY, faults=FAULTS)
    async with Sandbox(options) as lune:
        for account in lune.accounts:
            for order in lune.orders(account.id):
                order.metadata, order.email = {METADATA: METADATA}, EMAIL
                order.offset_link_id = "link"
                served = str(lune.document(order.id))
                assert METADATA in served
                assert EMAIL in served
        home = Home(tmp_path, lune, harvest__sweep_interval="500ms", log__level="debug")
        async with home.daemon() as daemon:
            await until(lambda: len(daemon.events("sweep finished")) > 2)
            lune.faults.add("revoked-key")
            await until(lambda: [one for one in daemon.events() if one["level"] == "error"])
            ran = await daemon.end()
        assert {fault.name for fault in lune.faults.active()} == {"revoked-key"}
    assert ran.code == 0
    assert [line for line in daemon.err if "CANARY" in line] == []
    assert "Traceback" not in ran.err


async def test_a_retiring_order_s_certificate_is_kept_beside_the_final_one(tmp_path: Path) -> None:
    async with Sandbox(SandboxOptions(orders=0, rate_limit=0)) as lune:
        order = lune.create_order("retiring", hold=True)
        home = Home(tmp_path, lune, harvest__sweep_interval="500ms", harvest__interim=True)
        async with home.daemon() as daemon:
            await until(lambda: len(home.files()) == 1)
            (interim,) = home.files()
            assert interim.endswith(f"/{order.id}.interim.pdf")
            early = (home.archive / interim).read_bytes()
            lune.move_order(order.id, "complete")
            (final,) = await until(lambda: home.files() - {interim})
            await until(lambda: len(daemon.events("certificate stored")) == 2)
            await daemon.end()
        shown = await home.show(order.id)
    assert [one["kind"] for one in shown["certificates"]] == ["interim", "final"]
    assert shown["certificate"]["path"] == str(home.archive / final)
    assert shown["certificate"]["version"] == 2
    assert (home.archive / interim).read_bytes() == early
    assert (home.archive / final).read_bytes() == lune.certificate(order.id) != early


async def test_without_interim_no_certificate_is_asked_for_before_completion(
    tmp_path: Path,
) -> None:
    async with Sandbox(SandboxOptions(orders=0, rate_limit=0)) as lune:
        lune.create_order("retiring", hold=True)
        home = Home(tmp_path, lune, harvest__sweep_interval="500ms")
        async with home.daemon() as daemon:
            await until(lambda: len(daemon.events("sweep finished")) > 2)
        assert lune.journal.count("GET /orders/{id}/certificate") == 0


async def test_after_a_refused_key_the_daemon_stays_and_asks_no_more(tmp_path: Path) -> None:
    async with Sandbox(SandboxOptions(orders=3, rate_limit=0)) as lune:
        home = Home(tmp_path, lune, harvest__sweep_interval="500ms")
        (home.folder / "lune_api_key").write_text(KEY)
        async with home.daemon() as daemon:
            await until(lambda: [one for one in daemon.events() if one["level"] == "error"])
            status = await home.run("status")
            assert status.code == 0
            assert not daemon.ended
            ran = await daemon.end()
        assert lune.journal.count() <= 2
    assert ran.code == 0
    assert "CANARY" not in ran.err


async def test_it_waits_for_a_lune_that_is_not_there_yet(tmp_path: Path) -> None:
    async with Sandbox(SandboxOptions(orders=7, client_accounts=0, speed=0)) as lune:
        home = Home(tmp_path, lune, harvest__sweep_interval="500ms")
        port = int(lune.base_url.removesuffix("/v1").rpartition(":")[2])
        await lune.stop()
        async with home.daemon() as daemon:
            await until(lambda: len(daemon.events()) > 2)
            await lune.start(port=port)
            await until(lambda: daemon.events("certificate stored"))
            ran = await daemon.end()
    assert ran.code == 0
