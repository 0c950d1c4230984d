"""``doctor``: a line for each thing that was looked at, and what to do about what is wrong."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, Ran

SUBJECTS = {"configuration", "key", "Lune", "mode", "accounts", "ledger", "archive"}


@pytest.fixture
async def lune() -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxOptions(orders=7, speed=0, rate_limit=0)) as sandbox:
        yield sandbox


@pytest.fixture
def home(tmp_path: Path, lune: Sandbox) -> Home:
    return Home(tmp_path, lune)


def failures(ran: Ran) -> dict[str, str]:
    """Return what ``doctor --json`` found wrong: the text by the subject."""
    return {one["subject"]: one["text"] for one in ran.document() if one["level"] == "fail"}


def lines(ran: Ran) -> dict[str, tuple[str, str]]:
    """Return the level and the text of each line, by its subject."""
    found = {}
    for line in ran.out.splitlines():
        level, rest = line.split(maxsplit=1)
        subject, _, text = rest.partition(": ")
        found[subject] = (level, text)
    return found


async def test_all_is_well_before_and_after_the_first_drain(home: Home) -> None:
    fresh = await home.run("doctor")
    assert (fresh.code, fresh.err) == (0, "")
    assert lines(fresh).keys() >= SUBJECTS
    assert {level for level, _ in lines(fresh).values()} == {"ok"}
    assert not home.ledger.parent.exists()
    assert not home.archive.exists()
    assert (await home.run("run", "--drain")).code == 0
    used = await home.run("doctor")
    assert (used.code, used.err) == (0, "")
    assert {level for level, _ in lines(used).values()} == {"ok"}
    assert "durabl" in lines(used)["archive"][1]


async def test_json_is_one_document_with_a_level_and_a_text_for_each_subject(home: Home) -> None:
    ran = await home.run("doctor", "--json")
    assert ran.code == 0
    assert {one["subject"] for one in ran.document()} >= SUBJECTS
    assert all(one["level"] == "ok" and one["text"] for one in ran.document())


async def test_it_names_the_daemon_that_holds_the_ledger(home: Home) -> None:
    async with home.daemon() as daemon:
        ran = await home.run("doctor")
        assert ran.code == 0, ran.out
        assert f"process {daemon.process.pid}" in lines(ran)["ledger"][1]


async def test_a_missing_key_is_said_once_with_both_ways_to_give_it(home: Home) -> None:
    text = "".join(line for line in home.config.read_text().splitlines(True) if "key" not in line)
    home.config.write_text(text)
    ran = await home.run("doctor", "--json")
    assert ran.code == 78
    assert list(failures(ran)) == ["key"]
    assert "lune.api_key_file" in failures(ran)["key"]
    assert "HARVESTER_LUNE__API_KEY" in failures(ran)["key"]


async def test_a_key_file_that_is_not_there_is_named(home: Home) -> None:
    (home.folder / "lune_api_key").unlink()
    ran = await home.run("doctor", "--json")
    assert ran.code == 78
    assert str(home.folder / "lune_api_key") in failures(ran)["key"]


async def test_a_key_file_that_everybody_reads_is_refused_with_the_cure(home: Home) -> None:
    key = home.folder / "lune_api_key"
    key.chmod(0o644)
    ran = await home.run("doctor", "--json")
    assert ran.code == 78
    assert f"chmod 600 {key}" in failures(ran)["key"]


async def test_a_refused_key_exits_77_and_points_to_the_key(home: Home) -> None:
    key = home.folder / "lune_api_key"
    key.write_text("CANARY-wrong-key")
    ran = await home.run("doctor", "--json")
    assert ran.code == 77
    assert "refused" in failures(ran)["Lune"]
    assert str(key) in failures(ran)["Lune"] or "api_key" in failures(ran)["Lune"]
    assert "CANARY" not in ran.out + ran.err


async def test_a_key_of_the_other_mode_exits_78_with_the_two_ways_out(home: Home) -> None:
    assert (await home.run("run", "--drain")).code == 0
    async with Sandbox(SandboxOptions(orders=0, mode="live", rate_limit=0)) as live:
        home.configure(lune__base_url=live.base_url)
        ran = await home.run("doctor", "--json")
    assert ran.code == 78
    assert "live key" in failures(ran)["mode"]
    assert "test orders" in failures(ran)["mode"]
    assert "another ledger" in failures(ran)["mode"]


async def test_an_account_out_of_reach_is_named(home: Home) -> None:
    home.configure(lune__accounts=["default", "nobody"])
    ran = await home.run("doctor", "--json")
    assert ran.code != 0
    assert "nobody" in " ".join(failures(ran).values())


async def test_plain_http_to_another_host_exits_78_by_its_setting_s_name(home: Home) -> None:
    home.configure(lune__base_url="http://api.lune.co/v1")
    ran = await home.run("doctor")
    said = ran.out + ran.err
    assert ran.code == 78
    assert "lune.base_url" in said
    assert "https" in said


async def test_a_wrong_layout_exits_78_by_its_setting_s_name(home: Home) -> None:
    home.configure(storage__layout="{account_id}/{customer}")
    ran = await home.run("doctor")
    said = ran.out + ran.err
    assert ran.code == 78
    assert "storage.layout" in said
    assert "{order_id}" in said


async def test_a_lune_that_is_somewhere_else_is_named_by_its_configured_address(
    home: Home, lune: Sandbox
) -> None:
    lune.faults.add("redirect")
    ran = await home.run("doctor", "--json")
    assert ran.code == 3
    assert lune.base_url in failures(ran)["Lune"]


@pytest.mark.parametrize("setting", ["storage__url", "database__url"])
async def test_a_folder_that_cannot_be_made_fails_with_the_reason(home: Home, setting: str) -> None:
    (home.folder / "file").write_text("not a folder\n")
    scheme = "file://" if setting == "storage__url" else "sqlite:///"
    home.configure(**{setting: f"{scheme}{home.folder}/file/below"})
    ran = await home.run("doctor", "--json")
    assert ran.code != 0
    subject = "archive" if setting == "storage__url" else "ledger"
    assert f"{home.folder}/file" in failures(ran)[subject]


async def test_an_archive_that_is_gone_fails_once_certificates_were_stored(home: Home) -> None:
    assert (await home.run("run", "--drain")).code == 0
    home.archive.rename(home.folder / "unmounted")
    ran = await home.run("doctor", "--json")
    assert ran.code != 0
    assert str(home.archive) in failures(ran)["archive"]
    assert "mount" in failures(ran)["archive"]


async def test_an_archive_that_holds_a_file_in_its_way_fails(home: Home) -> None:
    home.archive.write_text("not a folder\n")
    ran = await home.run("doctor", "--json")
    assert ran.code != 0
    assert str(home.archive) in failures(ran)["archive"]


@pytest.mark.parametrize("damage", ["garbage", "torn"])
async def test_a_damaged_ledger_is_left_alone_and_said_what_to_do_about(
    home: Home, damage: str
) -> None:
    assert (await home.run("run", "--drain")).code == 0
    whole = home.ledger.read_bytes()
    if damage == "garbage":
        broken = os.urandom(len(whole))
    else:  # the first page stays, so that it opens as a database
        broken = whole[:4096] + os.urandom(len(whole) - 4096)
    home.ledger.write_bytes(broken)
    ran = await home.run("doctor", "--json")
    assert ran.code != 0
    assert "Traceback" not in ran.err
    found: dict[str, Any] = failures(ran)
    assert list(found) == ["ledger"]
    assert "backup" in found["ledger"]
    assert home.ledger.read_bytes() == broken


async def test_a_newer_ledger_exits_78_with_the_two_ways_out(home: Home) -> None:
    assert (await home.run("run", "--drain")).code == 0
    with closing(sqlite3.connect(home.ledger)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    ran = await home.run("doctor", "--json")
    assert ran.code == 78
    assert "9999" in failures(ran)["ledger"]
    assert "backup" in failures(ran)["ledger"]
    for command in (["run", "--drain"], ["orders"], ["db", "upgrade"]):
        refused = await home.run(*command)
        assert refused.code == 78
        assert "9999" in refused.err
