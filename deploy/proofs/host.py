"""A booted machine with the harvester installed as deploy/README.md says, and questions to it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from proofs.handbook import read_blocks
from proofs.lune import Lune
from proofs.nspawn import Machine
from proofs.releases import copy_release
from proofs.steps import REPOSITORY, Proof, fail, run, until

HARVESTER = "/opt/harvester/bin/harvester --config /etc/harvester/config.toml"
OFFLINE = "PIP_NO_INDEX=1 PIP_FIND_LINKS=/root/wheels PIP_ROOT_USER_ACTION=ignore"
_SECTION = "As a systemd service"
_CONFIG = """\
[lune]
base_url = "{base_url}"
accounts = ["all"]
[harvest]
sweep_interval = "2s"
longest_interval = "10s"
[http]
listen = ""
[[events.hooks]]
name = "note"
command = ["/bin/sh", "-c", "echo $HARVESTER_EVENT_TYPE $NOTIFY_SOCKET >> /var/lib/harvester/told"]
"""
_HASTY = "[Service]\nRestartSec=1\nWatchdogSec=6\nStartLimitBurst=100\n"


class Host:
    """The machine, the sandbox it is connected to, and the page's commands for it."""

    def __init__(self, proof: Proof, machine: Machine) -> None:
        self._proof = proof
        self.machine = machine
        self.do = machine.shell
        blocks = read_blocks()[_SECTION]
        self._lines = [line for block in blocks for line in block]

    def install(self) -> str:
        """Build the wheels here, where an index is reached; install from source in the machine."""
        wheels = self._proof.folder / "wheels"
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", wheels)
        constraints = REPOSITORY / "deploy" / "constraints.txt"
        run(*pip, "--constraint", constraints, REPOSITORY, "hatchling")
        self.lune = self._start_lune(wheels)
        root = self.machine.root / "root"
        shutil.copytree(wheels, root / "wheels")
        copy_release(root / "source")
        self.machine.boot()
        self.follow("python3 -m venv")
        self.follow("install -d -m 0755")
        self.follow("config.example.toml")
        self.configure()
        self.give_key(self.lune.key)
        self.follow("deploy/systemd/harvester*")
        self.write("/etc/systemd/system/harvester.service.d/hasty.conf", _HASTY)
        return f"{self.harvester('--version')}, {self.do('systemctl --version | head -1')}"

    def _start_lune(self, wheels: Path) -> Lune:
        """Install a harvester here, for a sandbox that stays while the machine reboots."""
        here = self._proof.folder / "sandbox"
        run(sys.executable, "-m", "venv", here)
        offline = (here / "bin" / "pip", "install", "--quiet", "--no-index")
        run(*offline, "--find-links", wheels, "lune-harvester")
        return Lune(self._proof, here / "bin" / "harvester", "--orders 40")

    def follow(self, words: str, stdin: str = "") -> str:
        """Run the line of the page that has these words, as it stands, in the sources."""
        found = [line for line in self._lines if words in line]
        if len(found) != 1:
            fail(f"{len(found)} lines of the page's section have {words!r}: {found}")
        typed = f"printf %s '{stdin}' | {found[0]}" if stdin else found[0]
        return self.do(f'cd source; export {OFFLINE}; sudo() {{ "$@"; }}; {typed}')

    def harvester(self, arguments: str, exits: int = 0) -> str:
        """Run a command of the harvester as root; return what it prints on both streams."""
        return self.do(f"{HARVESTER} {arguments} 2>&1", exits=exits)

    def as_service(self, arguments: str) -> str:
        """Run a command of the harvester as the service, by the page's function."""
        (function,) = [line for line in self._lines if line.startswith("as_service()")]
        return self.do(f'sudo() {{ "$@"; }}; {function}; as_service {arguments}')

    def give_key(self, key: str) -> None:
        """Put a key in place as the page does."""
        self.follow("/dev/stdin /etc/harvester/lune_api_key", f"{key}\n")

    def configure(self, *, lune: str = "", end: str = "") -> None:
        """Write the configuration, with a line more in its first section or at its end."""
        text = _CONFIG.format(base_url=self.lune.base_url)
        text = text.replace("[harvest]\n", f"{lune}[harvest]\n", 1)
        self.write("/etc/harvester/config.toml", text + end)

    def write(self, path: str, text: str) -> None:
        """Write a file of the machine; units of systemd are read anew."""
        file = self.machine.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if path.startswith("/etc/systemd/"):
            self.do("systemctl daemon-reload")

    def show(self, name: str, unit: str = "harvester") -> str:
        """Return a property that systemd has of a unit."""
        return self.do(f"systemctl show -P {name} {unit}")

    def owner(self) -> str:
        """Return the number of the user that the state belongs to."""
        return self.do("stat -c %u /var/lib/private/harvester")

    def stored(self) -> int:
        """Return how many certificates are stored."""
        state = json.loads(self.do(f"{HARVESTER} status --json"))
        return int(state["certificates"].get("stored", 0))

    def place(self, tonnes: str) -> None:
        """Place an order; its certificate is ready once Lune's clock has gone on."""
        self.as_service(f"order by-mass {tonnes} t --yes --idempotency-key prove-{tonnes}")

    def journal(self, text: str) -> list[dict[str, str]]:
        """Return the journal's entries with a text, the oldest first."""
        lines = self.do("journalctl -o json --output-fields=MESSAGE,_COMM").splitlines()
        return [entry for entry in map(json.loads, lines) if text in str(entry.get("MESSAGE"))]

    def until_status(self, holds: Callable[[str], object]) -> None:
        """Wait for a text of ``systemctl status``."""
        until(lambda: holds(self.show("StatusText")), "a status text that says so")
