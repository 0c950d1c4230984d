"""A folder in a machine's place, and a sandbox in Lune's: what needs no more than processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proofs.lune import Lune, is_settled
from proofs.steps import Proof, fail, run, start, until

_ENDED = 45.0
_SHOWN = 2000


class Machine:
    """What a machine has of the harvester: programs, configuration, ledger and certificates."""

    def __init__(self, proof: Proof, name: str, programs: Path, lune: Lune) -> None:
        self._proof = proof
        self.root = proof.folder / name
        self._programs = programs
        self._service: subprocess.Popen[bytes] | None = None
        self.log = self.root / "harvester.log"
        self.state = self.root / "lib" / "harvester"
        self.ledger = self.state / "harvester.db"
        self.archive = self.state / "certificates"
        self.backups = self.root / "backups"
        self.backups.mkdir(parents=True)
        self.log.touch()
        self.key = self.root / "lune_api_key"
        self.key.touch(0o600)
        self.key.write_text(lune.key, "utf-8")
        self.config = self.root / "config.toml"
        self._configure(lune.base_url)

    def _configure(self, base_url: str) -> None:
        sections: dict[str, dict[str, object]] = {
            "lune": {
                "base_url": base_url,
                "api_key_file": str(self.key),
                "accounts": ["all"],
                "rate_limit": 50,
            },
            "database": {"url": f"sqlite:///{self.ledger}"},
            "storage": {"url": self.archive.as_uri()},
            "harvest": {"sweep_interval": "1s", "longest_interval": "5s"},
            "http": {"listen": ""},
        }
        text: list[str] = []
        for name, keys in sections.items():
            text += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        self.config.write_text("\n".join(text) + "\n", "utf-8")

    @property
    def program(self) -> Path:
        """The installed command."""
        return self._programs / "bin" / "harvester"

    @property
    def environment(self) -> dict[str, str]:
        """What commands run with: next to nothing, and where the configuration is."""
        path = f"{self._programs / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return {"PATH": path, "HOME": str(self.root), "HARVESTER_CONFIG": str(self.config)}

    def harvester(self, *words: str, exits: int = 0, stdin: str = "") -> str:
        """Run a command of the harvester; return its stdout."""
        return run(
            self.program, *words, exits=exits, env=self.environment, cwd=self.root, input=stdin
        )

    def follow(self, commands: Sequence[str], checkout: Path, typed: str = "") -> str:
        """Run documented commands, as they stand, in a checkout; return what they print."""
        return "".join(self._run(line, checkout, typed) for line in commands)

    def _run(self, line: str, checkout: Path, typed: str) -> str:
        match line.split():
            case ["sudo", "systemctl", verb, "harvester"]:
                if verb in {"stop", "restart"}:
                    self.stop()
                if verb in {"start", "restart"}:
                    self.start()
                return ""
        for there, here in (
            ("/opt/harvester", self._programs),
            ("/var/lib/harvester", self.state),
            ("/var/backups", self.backups),
            ("/etc/harvester/lune_api_key", self.key),
        ):
            line = line.replace(there, str(here))
        as_root = f'sudo() {{ "$@"; }}; as_service() {{ {self.program} "$@"; }}; {line}'
        known = self.environment | _package_index()
        return run("bash", "-euc", as_root, env=known, cwd=checkout, input=typed)

    def start(self) -> None:
        """Start the service and wait until it works."""
        before = self._logged("started")
        service = self.start_command("run")
        until(lambda: self._logged("started") > before or service.poll() is not None, "the start")
        if service.poll() is not None:
            fail(f"it ended with {service.returncode}: {self.log.read_text('utf-8')[-_SHOWN:]}")
        self._service = service

    def start_command(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command of the harvester whose output goes to the log."""
        return start(self._proof, [self.program, *words], self.log, self.environment)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the service a signal; return how it ended."""
        if self._service is None:
            fail("nothing runs that could be stopped")
        self._service.send_signal(number)
        return self._service.wait(_ENDED)

    def status(self) -> dict[str, Any]:
        """Return ``status --json``."""
        document: dict[str, Any] = json.loads(self.harvester("status", "--json"))
        return document

    def orders(self, *filters: str) -> dict[str, Any]:
        """Return the rows of ``orders --json``, by order."""
        lines = self.harvester("orders", "--json", "--limit", "100000", *filters).splitlines()
        return {row["id"]: row for row in map(json.loads, lines)}

    def settle(self, orders: int) -> dict[str, Any]:
        """Wait until so many orders have ended and all certificates are there; return the rows."""
        what = f"{orders} orders that ended, with their certificates"
        until(lambda: is_settled(self.status(), orders), what)
        return self.orders()

    def certificates(self) -> set[str]:
        """Return the orders whose certificates are in the archive."""
        return {path.stem for path in self.archive.glob("*/*/*.pdf")}

    def recovered(self) -> int:
        """Return how many certificates the service has recorded without a download."""
        return self._logged("certificate recovered")

    def downloaded(self) -> int:
        """Return how many certificates the service has downloaded."""
        return self._logged("certificate stored")

    def _logged(self, event: str) -> int:
        return self.log.read_text("utf-8").count(f'"event": "{event}"')

    def verify(self) -> str:
        """Have everything verified; return the summary's line."""
        return self.harvester("verify").strip().splitlines()[-1]


def _package_index() -> dict[str, str]:
    """Return how this machine is told where packages come from, for pip."""
    names = ("PIP_", "HTTPS_PROXY", "https_proxy", "SSL_CERT", "REQUESTS_CA")
    return {name: text for name, text in os.environ.items() if name.startswith(names)}


def install(folder: Path, checkout: Path) -> Path:
    """Install a checkout as deploy/README.md says; return the virtual environment.

    ``PROVE_PROGRAMS`` names one that may be changed, to save the time to make one.
    """
    if (given := os.environ.get("PROVE_PROGRAMS")) is not None:
        folder = Path(given).resolve()
    else:
        run("python3", "-m", "venv", folder)
    constraints = checkout / "deploy" / "constraints.txt"
    run(folder / "bin" / "pip", "install", "-q", "-c", constraints, checkout)
    return folder


def same(before: dict[str, Any], after: dict[str, Any], *keys: str) -> None:
    """Fail unless the same orders are there, with the same values of the given keys."""
    if before.keys() != after.keys():
        fail(f"{len(before)} orders before, {len(after)} after")
    for order, row in before.items():
        for key in keys:
            if row[key] != after[order][key]:
                fail(f"order {order}: {key} was {row[key]}, is {after[order][key]}")
