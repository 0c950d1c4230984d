"""``demo`` and ``sandbox``: what a stranger runs before there is a key."""

from __future__ import annotations

import asyncio
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from pypdf import PdfReader

from tests.acceptance.harness import Home, Ran, on_a_terminal, until


@dataclass(frozen=True, slots=True)
class Shown:
    """Two demos at once: one into a pipe, one on a terminal."""

    home: Home
    piped: Ran
    code: int
    drawn: str


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return bare(tmp_path / "a folder")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return asyncio.run(_shown(bare(tmp_path_factory.mktemp("demo") / "a folder")))


def bare(folder: Path) -> Home:
    """Return a folder without a configuration, with a space in its name as people have them."""
    folder.mkdir()
    home = Home(folder)
    home.config.unlink()
    return home


async def _shown(home: Home) -> Shown:
    piped, (code, drawn) = await asyncio.gather(
        home.run("demo"), on_a_terminal(home, "demo", "--folder", "shown")
    )
    return Shown(home, piped, code, drawn)


def certificates(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.pdf"))


def are_whole(found: list[Path]) -> bool:
    """Tell whether each file opens as a PDF of at least a page, without a repair."""
    return all(len(PdfReader(path, strict=True).pages) > 0 for path in found)


def named(out: str) -> Path:
    """Return the folder of certificates that the demo names at its end."""
    match = re.search(r"certificates are in (.+)$", out, re.MULTILINE)
    assert match is not None, out
    return Path(match[1].strip())


def test_the_demo_leaves_whole_pdfs_where_it_says_and_prints_plain_lines(shown: Shown) -> None:
    ran = shown.piped
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    folder = named(ran.out)
    assert shown.home.folder in folder.parents
    found = certificates(folder)
    assert are_whole(found)
    summary = re.search(
        r"^(\d+) orders followed, (\d+) certificates stored.*\(0 wrong\)", ran.out, re.MULTILINE
    )
    assert summary is not None
    assert 0 < len(found) == int(summary[2]) < int(summary[1])
    assert _progress(ran)[0] != _progress(ran)[-1]
    log = (folder.parent / "harvester.log").read_text()
    assert '"event": "sweep finished"' in log
    assert not [one for one in log.splitlines() if not one.startswith("{")]


async def test_the_demo_s_last_line_is_a_command_that_works_as_it_is(shown: Shown) -> None:
    hint = shlex.split(shown.piped.out.splitlines()[-1].partition("harvester ")[2])
    looked = await shown.home.run(*hint)
    assert looked.code == 0, looked.err
    assert looked.out


async def test_the_demo_s_harvest_is_one_that_verifies(shown: Shown) -> None:
    config = named(shown.piped.out).with_name("config.toml")
    ran = await shown.home.run("verify", "--config", config)
    assert ran.code == 0, ran.err


def _progress(ran: Ran) -> list[str]:
    return [
        line for line in ran.out.splitlines() if re.match(r"\d+ \w+, .*certificates stored$", line)
    ]


def test_on_a_terminal_the_demo_draws_a_live_view_and_a_table(shown: Shown) -> None:
    drawn = shown.drawn
    assert shown.code == 0
    assert "\x1b[" in drawn
    assert drawn.count("certificates stored") > 3
    assert "█" in drawn
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert re.search(r"order\s+tonnes\s+observed\s+certificate", plain)
    assert "(0 wrong)" in plain
    assert certificates(shown.home.folder / "shown" / "certificates")


async def test_the_demo_takes_no_folder_that_holds_something(home: Home) -> None:
    (home.folder / "mine").mkdir()
    (home.folder / "mine" / "file").touch()
    ran = await home.run("demo", "--folder", "mine")
    assert ran.code == 2
    assert "mine is not empty" in ran.err
    assert [path.name for path in (home.folder / "mine").iterdir()] == ["file"]


async def test_an_interrupted_demo_ends_soon_and_says_so(home: Home) -> None:
    async with home.running("demo") as demo:
        await until(lambda: len(demo.out) > 2 or demo.ended)
        ran = await demo.end()
    assert ran.code == 130
    assert "Traceback" not in ran.err


@pytest.fixture
def pasted(home: Home) -> Home:
    return Home(home.folder)


async def test_the_sandbox_prints_a_configuration_that_works_when_pasted(pasted: Home) -> None:
    async with pasted.running("sandbox", "--port", "0", "--speed", "0") as sandbox:
        await until(lambda: "accounts = " in "".join(sandbox.out) or sandbox.ended)
        said = "".join(sandbox.out)
        snippet = said[said.index("[lune]") :]
        base_url = tomllib.loads(snippet)["lune"]["base_url"]
        assert base_url in said[: said.index("[lune]")]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", base_url)
        pasted.config.write_text(pasted.config.read_text() + snippet)
        doctor = await pasted.run("doctor")
        drain = await pasted.run("run", "--drain")
        ended = await sandbox.end()
    assert doctor.code == 0, doctor.out + doctor.err
    assert drain.code == 0, drain.err
    assert certificates(pasted.archive)
    assert (ended.code, ended.err) == (0, "")
