"""The installed command in a folder of its own, run as its users run it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home
from tests.acceptance.ordering import at_the_desk
from tests.integration.order_desk import OrderDesk

COMMAND = Path(sys.executable).with_name("harvester")
SETTINGS: dict[str, object] = {
    "lune.accounts": ["all"],
    "lune.rate_limit": 5000,
    "harvest.sweep_interval": "500ms",
    "harvest.longest_interval": "5s",
    "http.listen": "",
}


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str
    seconds: float


class House:
    """Everything of one harvester: configuration, key, ledger, archive, what it said."""

    def __init__(self, root: Path) -> None:
        self.state = root / "state"
        self.ledger = self.state / "ledger.db"
        self.archive = self.state / "certificates"
        self.said = root / "said"
        self.said.mkdir()
        self._config = root / "config.toml"
        self._keys: set[str] = set()
        self._environment: dict[str, str] = {}
        self._running: list[subprocess.Popen[bytes]] = []

    def configure(self, base_url: str, key: str, **changed: object) -> None:
        """Write the configuration file; ``changed`` names settings with ``__`` for the dot."""
        self._environment = {"HARVESTER_CONFIG": str(self._config)}
        if "lune__api_key_file" not in changed:
            self._environment["HARVESTER_LUNE__API_KEY"] = key
        self._keys.add(key)
        settings = SETTINGS | {
            "lune.base_url": base_url,
            "database.url": f"sqlite:///{self.ledger}",
            "storage.url": f"file://{self.archive}",
        }
        settings |= {name.replace("__", "."): value for name, value in changed.items()}
        sections: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in settings.items():
            section, _, key = name.partition(".")
            sections[section].append(f"{key} = {json.dumps(value)}")
        text = "\n".join(f"[{name}]\n" + "\n".join(lines) for name, lines in sections.items())
        self._config.write_text(text + "\n", "utf-8")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command; what it says goes to files that are named after its process id."""
        environment = {n: v for n, v in os.environ.items() if not n.startswith("HARVESTER_")}
        number = len(self._running)
        with (
            (self.said / f"{number}.out").open("wb") as out,
            (self.said / f"{number}.err").open("wb") as err,
        ):
            process = subprocess.Popen(
                [COMMAND, *arguments],
                env=environment | self._environment,
                cwd=self.said,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        self._running.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes], timeout: float = 120) -> Finished:
        """Wait for a started command to end."""
        began = time.monotonic()
        code = process.wait(timeout)
        return Finished(code, *self.output(process), time.monotonic() - began)

    def output(self, process: subprocess.Popen[bytes]) -> tuple[str, str]:
        """Return what a command has said so far on stdout and stderr."""
        number = self._running.index(process)
        out, err = (self.said / f"{number}.{stream}" for stream in ("out", "err"))
        return out.read_text("utf-8"), err.read_text("utf-8")

    def run(self, *arguments: str, timeout: float = 120) -> Finished:
        """Run a command to its end."""
        return self.finish(self.start(*arguments), timeout)

    def drain(self, *arguments: str, timeout: float = 120) -> Finished:
        """Run ``run --drain``."""
        return self.run("run", "--drain", *arguments, timeout=timeout)

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command that prints JSON Lines and return them."""
        ended = self.run(*arguments, "--json")
        assert ended.code == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]

    def orders(self, *filters: str) -> dict[str, dict[str, Any]]:
        """Return the rows of ``orders --json`` by order id."""
        return {row["id"]: row for row in self.lines("orders", *filters)}

    def certificates(self) -> dict[str, str]:
        """Return the SHA-256 of every file under a final name, by its path in the archive."""
        return {
            str(path.relative_to(self.archive)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.archive.rglob("*")
            if path.is_file() and not self._is_apart(path)
        }

    def temporaries(self) -> list[Path]:
        """Return the files of the archive that are neither certificates nor in quarantine."""
        files = (path for path in self.archive.rglob("*") if path.is_file())
        return [path for path in files if self._is_apart(path) and "quarantine" not in path.parts]

    def _is_apart(self, path: Path) -> bool:
        parts = path.relative_to(self.archive).parts
        return parts[0] == "quarantine" or any(part.startswith(".") for part in parts)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the ledger, while nobody writes it."""
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()

    def chains(self) -> dict[str, list[tuple[str, str]]]:
        """Return each order's transitions as (status, source), having seen that none is missing."""
        chains: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        columns = "order_id, seq, from_status, to_status, source"
        for order, number, before, after, source in self.query(
            f"SELECT {columns} FROM history ORDER BY order_id, seq"
        ):
            chain = chains[order]
            assert number == len(chain) + 1, f"{order}: {number} after {len(chain)} transitions"
            assert before == (chain[-1][0] if chain else None), f"{order}: a gap at {number}"
            chain.append((after, source))
        return chains

    def until(self, true: Callable[[], object], what: str, seconds: float = 30) -> None:
        """Wait until something is true, but not for ever."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            time.sleep(0.01)

    def assert_the_key_is_nowhere(self) -> None:
        """Look for the key in all that was said, and in every file that was kept."""
        files = [path for path in (*self.said.rglob("*"), *self.state.rglob("*")) if path.is_file()]
        for path in files:
            data = path.read_bytes()
            assert not any(key.encode() in data for key in self._keys), f"{path} shows the key"

    def end(self) -> None:
        """End what still runs; nothing may have broken, nor shown the key."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait(30)
        self.assert_the_key_is_nowhere()
        for path in self.said.glob("*.err"):
            log = path.read_text("utf-8")
            assert "Traceback" not in log, log[log.index("Traceback") - 400 :][:4000]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print measurements past pytest's capture."""

    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="")  # noqa: T201 - measurements are for whoever runs the tests

    return tell


@pytest.fixture
async def lune() -> AsyncIterator[Sandbox]:
    """A Lune without orders whose clock stands still."""
    options = SandboxOptions(orders=0, client_accounts=1, speed=0, rate_limit=0)
    async with Sandbox(options) as sandbox:
        yield sandbox


@pytest.fixture
async def desk() -> AsyncIterator[OrderDesk]:
    async with OrderDesk().serving() as one:
        yield one


@pytest.fixture
def shop(tmp_path: Path, desk: OrderDesk) -> Home:
    return at_the_desk(tmp_path, desk)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A harvester's folder; ends every process, and no test may let the key out."""
    house = House(tmp_path)
    yield house
    house.end()
