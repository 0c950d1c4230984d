"""The service on its machine: each method is a part of its life and returns what was seen."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from proofs.lune import Lune
from proofs.nspawn import Machine
from proofs.steps import REPOSITORY, Proof, fail, run, until

HARVESTER = "/opt/harvester/bin/harvester --config /etc/harvester/config.toml"
_SOURCES = ("harvester", "migrations", "deploy", "pyproject.toml", "README.md", "LICENSE")
_AS_SERVICE = (
    "systemd-run --quiet --pipe --wait --collect -p DynamicUser=yes -p User=harvester "
    "-p StateDirectory=harvester -p LoadCredential=lune_api_key:/etc/harvester/lune_api_key"
)
_OFFLINE = "PIP_NO_INDEX=1 PIP_FIND_LINKS=/root/wheels PIP_ROOT_USER_ACTION=ignore"
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


class Service:
    """The service on its machine. Each step returns what was seen of it."""

    def __init__(self, proof: Proof, machine: Machine) -> None:
        self._proof = proof
        self._machine = machine
        self._do = machine.shell

    def install(self) -> str:
        """Build the wheels here, where an index is reached; install from source in the machine."""
        wheels = self._proof.folder / "wheels"
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", wheels)
        constraints = REPOSITORY / "deploy" / "constraints.txt"
        run(*pip, "--constraint", constraints, REPOSITORY, "hatchling")
        self._lune = self._start_lune(wheels)
        root = self._machine.root / "root"
        shutil.copytree(wheels, root / "wheels")
        for name in (*_SOURCES, "config.example.toml"):
            _copy(REPOSITORY / name, root / "source" / name)
        self._machine.boot()
        self._do(
            "cd source; python3 -m venv /opt/harvester; "
            f"{_OFFLINE} /opt/harvester/bin/pip install -q -c deploy/constraints.txt .; "
            "install -d -m 0755 /etc/harvester; "
            "install -m 0644 config.example.toml /etc/harvester/config.toml; "
            f"echo {self._lune.key} | install -m 0600 /dev/stdin /etc/harvester/lune_api_key; "
            "install -m 0644 deploy/systemd/harvester* /etc/systemd/system/; "
            "systemctl daemon-reload"
        )
        self._write("/etc/harvester/config.toml", self._config())
        self._write("/etc/systemd/system/harvester.service.d/hasty.conf", _HASTY)
        self._do("systemctl daemon-reload")
        version = self._do(f"{HARVESTER} --version")
        return f"{version}, {self._do('systemctl --version | head -1')}"

    def _start_lune(self, wheels: Path) -> Lune:
        """Install a harvester here, for a sandbox that stays while the machine reboots."""
        here = self._proof.folder / "sandbox"
        run(sys.executable, "-m", "venv", here)
        offline = (here / "bin" / "pip", "install", "--quiet", "--no-index")
        run(*offline, "--find-links", wheels, "lune-harvester")
        return Lune(self._proof, here / "bin" / "harvester", "--orders 40")

    def starts(self) -> str:
        """Be ready while Lune hangs, and not before the ledger is open."""
        self._lune.ask("POST", "/faults", {"name": "hang"})
        began = time.monotonic()
        self._do("systemctl enable --now harvester")
        took = time.monotonic() - began
        ready = int(self._show("ActiveEnterTimestampMonotonic"))
        opened = int(self._journal('"event": "started"')[-1]["__MONOTONIC_TIMESTAMP"])
        if ready < opened - 100_000:
            fail(f"ready {opened - ready} microseconds before it was")
        if self._journal('"event": "sweep"'):
            fail("Lune hangs, and a sweep ended")
        self._lune.ask("DELETE", "/faults/hang")
        return f"systemctl start returned after {took:.1f} s, ledger open and Lune hanging"

    def tells(self) -> str:
        """Follow what the daemon does in the status text."""
        self._until_status(lambda text: re.match(r"following \d+ orders?, .* last sweep", text))
        until(lambda: self._stored() > 0, "a certificate")
        return self._show("StatusText")

    def runs_hooks(self) -> str:
        """Run hooks, confined as the service and without the manager's socket."""
        told = self._do("cat /var/lib/harvester/told").splitlines()
        if not all(len(line.split()) == 1 for line in told):
            fail(f"a hook saw the socket: {told[0]}")
        process = self._do("cat /proc/$(systemctl show -P MainPID harvester)/status")
        if "Seccomp:\t2" not in process or "NoNewPrivs:\t1" not in process:
            fail(process)
        return f"{len(told)} events told under seccomp by user {self._owner()}"

    def bears_root(self) -> str:
        """Read and refuse as root; write as the service."""
        self._do(f"{HARVESTER} retry --all")  # handed to the daemon
        self._do("systemctl stop harvester")
        for command in (
            "status",
            "orders",
            "db current",
            "events list",
            "export -o /root/orders.csv",
        ):
            self._do(f"{HARVESTER} {command}")
        refused = self._do(f"{HARVESTER} retry --all 2>&1", exits=78)
        for command in ("doctor", "retry --all"):
            self._do(f"{_AS_SERVICE} {HARVESTER} {command}")
        foreign = self._do(
            "find /var/lib/private/harvester ! -user $(stat -c %u $(dirname "
            "/var/lib/private/harvester/.))"
        )
        if foreign:
            fail(f"not the service's: {foreign}")
        self._do("systemctl start harvester")
        return refused.partition("harvester.db: ")[2].partition(",")[0]

    def is_killed(self) -> str:
        """Come back after SIGKILL."""
        return self._is_replaced("kill -KILL $(systemctl show -P MainPID harvester)")

    def hangs(self) -> str:
        """Be aborted by the watchdog while stopped, and come back."""
        seen = self._is_replaced("kill -STOP $(systemctl show -P MainPID harvester)")
        if not self._journal("Watchdog timeout"):
            fail("it was not the watchdog")
        if not self._journal("Fatal Python error: Aborted"):
            fail("nothing says where it stood")
        return f"{seen}, with where it stood in the journal"

    def reloads(self) -> str:
        """Keep the configuration when the new one is bad."""
        process = self._show("MainPID")
        self._write("/etc/harvester/config.toml", self._config() + "[harvset]\n")
        self._do("systemctl reload harvester")
        self._until_status(lambda text: "configuration not reloaded" in text)
        kept = self._show("StatusText").partition("; ")[2]
        self._write("/etc/harvester/config.toml", self._config() + '[log]\nlevel = "debug"\n')
        self._do("systemctl reload harvester")
        self._until_status(lambda text: "not reloaded" not in text)
        if (self._show("MainPID"), self._show("ActiveState")) != (process, "active"):
            fail("it is another process")
        return kept

    def changes_keys(self) -> str:
        """Take a new key from a file that is read by name; a credential needs a restart."""
        mine = "/var/lib/harvester/lune_api_key"
        self._do(f"echo no-such-key > {mine}; chmod 600 {mine}; chown {self._owner()} {mine}")
        self._write("/etc/harvester/config.toml", self._config(f'api_key_file = "{mine}"\n'))
        self._do("systemctl restart harvester")
        self._until_status(lambda text: "refuses the key" in text)
        self._do(f"echo {self._lune.key} > {mine}; systemctl reload harvester")
        self._until_status(lambda text: "refuses the key" not in text and "last sweep" in text)
        self._write("/etc/harvester/config.toml", self._config())
        self._do(f"rm {mine}; systemctl restart harvester")
        return ""

    def gives_up(self) -> str:
        """Stay down after exit 78, and 77."""
        self._do("systemctl stop harvester")
        self._write("/etc/harvester/config.toml", self._config() + "[harvset]\n")
        self._do("systemctl start harvester", exits=1)
        seen = [self._result("harvester")]
        self._write("/etc/harvester/config.toml", self._config())
        self._lune.ask("POST", "/faults", {"name": "revoked-key"})
        self._do("systemctl start harvester-drain", exits=1)
        seen.append(self._result("harvester-drain"))
        self._lune.ask("DELETE", "/faults/revoked-key")
        time.sleep(3.0)  # three times as long as a restart would wait
        states = [self._show("ActiveState", unit) for unit in ("harvester", "harvester-drain")]
        if (seen, states) != (["78", "77"], ["failed", "failed"]):
            fail(f"exited with {seen}, now {states}")
        self._do("systemctl reset-failed; systemctl start harvester")
        return "78 of the daemon, 77 of a drain"

    def stops(self) -> str:
        """Stop quickly."""
        self._until_status(lambda text: "last sweep" in text)
        began = time.monotonic()
        self._do("systemctl stop harvester")
        took = time.monotonic() - began
        if took > 2.0 or self._show("Result") != "success":
            fail(f"{took:.1f} s, {self._show('Result')}")
        return f"{took:.1f} s"

    def drains(self) -> str:
        """File by the timer, and leave the work to a daemon."""
        before = self._stored()
        self._lune.ask("POST", "/clock", {"advance": 90 * 86_400})
        soon = "[Timer]\nOnCalendar=\nOnActiveSec=1s\nRandomizedDelaySec=0\nAccuracySec=100ms\n"
        self._write("/etc/systemd/system/harvester-drain.timer.d/soon.conf", soon)
        self._do("systemctl daemon-reload; systemctl start harvester-drain.timer")
        until(lambda: self._journal("Finished harvester-drain"), "the drain")
        filed = self._stored() - before
        if filed <= 0:
            fail("nothing was filed")
        self._do("systemctl stop harvester-drain.timer; systemctl start harvester")
        self._do("systemctl start harvester-drain")  # 75 is no failure
        beside = self._result("harvester-drain")
        if (beside, self._show("ActiveState")) != ("75", "active"):
            fail(f"beside the daemon: {beside}, the daemon {self._show('ActiveState')}")
        return f"{filed} filed by the timer's, exit 75 and no failure beside the daemon"

    def reboots(self) -> str:
        """Go on after a reboot."""
        self._place("1.0")
        before = self._stored()
        self._machine.power_off()
        self._lune.ask("POST", "/clock", {"advance": 90 * 86_400})
        self._machine.boot()
        until(lambda: self._stored() > before, "a certificate after the boot")
        return f"{before} certificates before, {self._stored()} after"

    def upgrades(self) -> str:
        """Migrate under a next release, and file with it."""
        folder = self._proof.folder
        before = self._stored()
        schema = _write_next_release(folder / "next")
        wheel = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
        run(*wheel, folder / "next-wheel", folder / "next")
        shutil.copytree(folder / "next-wheel", self._machine.root / "root" / "next")
        self._do(
            f"{_OFFLINE} /opt/harvester/bin/pip install -q /root/next/*.whl; "
            "systemctl restart harvester"
        )
        told = self._journal('"event": "ledger upgraded"')
        if not told or f'"after": "{schema}"' not in told[-1]["MESSAGE"]:
            fail("the ledger was not upgraded")
        self._place("2.0")
        self._lune.ask("POST", "/clock", {"advance": 90 * 86_400})
        until(lambda: self._stored() > before, "a certificate of the next release")
        kept = self._do("ls /var/lib/private/harvester | grep before-")
        return f"{self._do(f'{HARVESTER} --version')}, schema {schema}, backup {kept}"

    def logs(self) -> str:
        """Find warnings by their priority."""
        counts = {}
        for priority in ("err", "warning", "info"):
            words = f"journalctl -u harvester -o cat -p {priority} _COMM=harvester"
            counts[priority] = len(self._do(words).splitlines())
        if not 0 < counts["err"] <= counts["warning"] < counts["info"]:
            fail(f"lines by priority: {counts}")
        last = self._do("journalctl -u harvester -o cat -p warning _COMM=harvester").splitlines()
        json.loads(next(line for line in reversed(last) if line.startswith("{")))
        return ", ".join(f"{count} at {name} or above" for name, count in counts.items())

    def ends(self) -> str:
        """Stop the service; nothing has failed."""
        self._do("systemctl stop harvester")
        failed = self._do("systemctl list-units --failed --quiet --no-legend --plain 'harvester*'")
        if failed:
            fail(failed)
        return ""

    def verify(self) -> str:
        """Hold ledger and archive against each other."""
        return self._do(f"{HARVESTER} verify").splitlines()[0]

    def _config(self, more: str = "") -> str:
        text = _CONFIG.format(base_url=self._lune.base_url)
        return text.replace("[harvest]\n", f"{more}[harvest]\n", 1)

    def _write(self, path: str, text: str) -> None:
        file = self._machine.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def _show(self, name: str, unit: str = "harvester") -> str:
        return self._do(f"systemctl show -P {name} {unit}")

    def _result(self, unit: str) -> str:
        return self._show("ExecMainStatus", unit)

    def _owner(self) -> str:
        return self._do("stat -c %u /var/lib/private/harvester")

    def _stored(self) -> int:
        state = json.loads(self._do(f"{HARVESTER} status --json"))
        return int(state["certificates"].get("stored", 0))

    def _place(self, tonnes: str) -> None:
        order = f"order by-mass {tonnes} t --yes --idempotency-key prove-{tonnes}"
        self._do(f"{_AS_SERVICE} {HARVESTER} {order}")

    def _journal(self, text: str) -> list[dict[str, str]]:
        """Return the journal's entries with a text, the oldest first."""
        lines = self._do("journalctl -o json --output-fields=MESSAGE,_COMM").splitlines()
        return [entry for entry in map(json.loads, lines) if text in str(entry.get("MESSAGE"))]

    def _until_status(self, holds: Callable[[str], object]) -> None:
        until(lambda: holds(self._show("StatusText")), "a status text that says so")

    def _is_replaced(self, blow: str) -> str:
        before = self._show("MainPID")
        self._do(blow)
        took = until(
            lambda: (
                self._show("MainPID") not in {before, "0"} and self._show("SubState") == "running"
            ),
            "another process",
        )
        return f"running again after {took:.1f} s"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def _write_next_release(folder: Path) -> str:
    """Write the sources of a next release, with a step of the schema more; return its number."""
    for name in _SOURCES:
        _copy(REPOSITORY / name, folder / name)
    package = folder / "harvester" / "__init__.py"
    package.write_text(
        re.sub(r'__version__ = "(.*)"', r'__version__ = "\1.post1"', package.read_text())
    )
    chain = folder / "harvester" / "ledger" / "migrate.py"
    text = chain.read_text()
    match = re.search(r'HEAD = "(\d+)"', text)
    if match is None:
        fail("migrate.py names no HEAD")
    head = match[1]
    following = f"{int(head) + 1:04}"
    text = text.replace(f'HEAD = "{head}"', f'HEAD = "{following}"')
    chain.write_text(re.sub(r"(REVISIONS = \([^)]*)\)", rf'\1, "{following}")', text))
    migration = folder / "migrations" / "versions" / f"{following}_next.py"
    migration.write_text(
        f'revision = "{following}"\ndown_revision = "{head}"\n'
        "branch_labels = depends_on = None\n\n\ndef upgrade() -> None:\n    pass\n"
    )
    return following
