"""The service's life on its machine: each method is a part of it and returns what was seen."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time

from proofs.host import OFFLINE, Host
from proofs.releases import write_next_release
from proofs.steps import REPOSITORY, Proof, fail, judge, run, until

_UNIT = REPOSITORY / "deploy" / "systemd" / "harvester.service"
_UNCHANGED = 3.0
"""Seconds after which what was not taken up will not be: three times those before a restart."""
_STOPS_WITHIN = 2.0


class Service:
    """The service on its machine. Each step returns what was seen of it."""

    def __init__(self, proof: Proof, host: Host) -> None:
        self._proof = proof
        self._host = host

    def starts(self) -> str:
        """Be ready while Lune hangs, and not before the ledger is open."""
        self._host.lune.ask("POST", "/faults", {"name": "hang"})
        began = time.monotonic()
        self._host.follow("daemon-reload &&")
        took = time.monotonic() - began
        ready = int(self._host.show("ActiveEnterTimestampMonotonic"))
        opened = int(self._host.journal('"event": "started"')[-1]["__MONOTONIC_TIMESTAMP"])
        if ready < opened - 100_000:
            fail(f"ready {opened - ready} microseconds before it was")
        if self._host.journal('"event": "sweep finished"'):
            fail("Lune hangs, and a sweep ended")
        self._host.lune.ask("DELETE", "/faults/hang")
        return f"systemctl start returned after {took:.1f} s, ledger open and Lune hanging"

    def tells(self) -> str:
        """Follow what the daemon does in the status text."""
        self._host.until_status(
            lambda text: re.match(r"following \d+ orders?, .* last sweep", text)
        )
        until(lambda: self._host.stored() > 0, "a certificate")
        text = self._host.show("StatusText")
        if "following" not in self._host.follow("systemctl status harvester"):
            fail("`systemctl status` does not show it")
        return text

    def is_bounded(self) -> str:
        """Have stored within the unit's memory, which is enforced here as the unit has it."""
        bounds = {name: int(self._host.show(name)) for name in ("MemoryMax", "TasksMax")}
        if bounds != {"MemoryMax": self._host.machine.memory, "TasksMax": 64}:
            fail(f"{bounds}, not what the unit says")
        most = bounds["MemoryMax"]
        hog = f"systemd-run --quiet --wait -p MemoryMax={most} /usr/bin/python3 -c"
        self._host.do(f"{hog} \"b'x' * {most // 8}\"")
        self._host.do(f"! {hog} \"b'x' * {most}\"")
        process = self._host.do("cat /proc/$(systemctl show -P MainPID harvester)/status")
        took = int(re.findall(r"VmHWM:\s+(\d+) kB", process)[0]) >> 10
        return (
            f"MemoryMax {most >> 20} MiB, {self._host.machine.bounded_by}, whoever takes it all is "
            f"killed; the service took {took} MiB at most so far, and stored"
        )

    def runs_hooks(self) -> str:
        """Run hooks, confined as the service and without the manager's socket."""
        told = self._host.do("cat /var/lib/harvester/told").splitlines()
        if not all(len(line.split()) == 1 for line in told):
            fail(f"a hook saw the socket: {told[0]}")
        process = self._host.do("cat /proc/$(systemctl show -P MainPID harvester)/status")
        if "Seccomp:\t2" not in process or "NoNewPrivs:\t1" not in process:
            fail(process)
        return f"{len(told)} events delivered under seccomp by user {self._host.owner()}"

    def bears_root(self) -> str:
        """Read and refuse as root; write as the service."""
        self._host.harvester("retry --all")  # handed to the daemon
        self._host.do("systemctl stop harvester")
        self._host.follow("/opt/harvester/bin/harvester status")
        for command in ("orders", "db current", "events list", "export -o /root/orders.csv"):
            self._host.harvester(command)
        refused = self._host.harvester("retry --all", exits=78)
        for command in ("doctor", "retry --all"):
            self._host.as_service(command)
        foreign = self._host.do(
            "find /var/lib/private/harvester ! -user $(stat -c %u $(dirname "
            "/var/lib/private/harvester/.))"
        )
        if foreign:
            fail(f"not the service's: {foreign}")
        self._host.do("systemctl start harvester")
        return refused.partition("harvester.db: ")[2].partition(",")[0]

    def is_killed(self) -> str:
        """Come back after SIGKILL."""
        return self._is_replaced("kill -KILL $(systemctl show -P MainPID harvester)")

    def hangs(self) -> str:
        """Be aborted by the watchdog while stopped, and come back."""
        seen = self._is_replaced("kill -STOP $(systemctl show -P MainPID harvester)")
        if not self._host.journal("Watchdog timeout"):
            fail("it was not the watchdog")
        if not self._host.journal("Fatal Python error: Aborted"):
            fail("nothing says where it stood")
        (own,) = re.findall(r"(?m)^WatchdogSec=(.+)$", _UNIT.read_text("utf-8"))
        shorter = self._host.show("WatchdogUSec")
        return (
            f"{seen}, by a drop-in's WatchdogSec={shorter} for the unit's {own} s; the journal "
            "says where it stood"
        )

    def reloads(self) -> str:
        """Keep the configuration when the new one is bad."""
        process = self._host.show("MainPID")
        self._host.configure(end="[harvset]\n")
        self._host.follow("systemctl reload harvester")
        self._host.until_status(lambda text: "configuration not reloaded" in text)
        kept = self._host.show("StatusText").partition("; ")[2]
        self._host.configure(end='[log]\nlevel = "debug"\n')
        self._host.follow("systemctl reload harvester")
        self._host.until_status(lambda text: "not reloaded" not in text)
        if (self._host.show("MainPID"), self._host.show("ActiveState")) != (process, "active"):
            fail("it is another process")
        return kept

    def replaces_credentials(self) -> str:
        """Take a key that was replaced by a restart, which hands it over, and not by a reload."""
        self._host.give_key("no-such-key")
        self._host.follow("systemctl restart harvester")
        self._host.until_status(lambda text: "refuses the key" in text)
        refused = self._host.show("StatusText")
        self._host.give_key(self._host.lune.key)
        self._host.follow("systemctl reload harvester")
        time.sleep(_UNCHANGED)
        if "refuses the key" not in self._host.show("StatusText"):
            fail("the unit says that a reload does not hand it over")
        self._host.follow("systemctl restart harvester")
        self._host.until_status(_works)
        return refused

    def reads_key_files(self) -> str:
        """Take a new key by a reload from a file that is read by its name."""
        mine, owner = "/var/lib/harvester/lune_api_key", self._host.owner()
        self._host.do(f"echo no-such-key > {mine}; chmod 600 {mine}; chown {owner} {mine}")
        self._host.configure(lune=f'api_key_file = "{mine}"\n')
        self._host.do("systemctl restart harvester")
        self._host.until_status(lambda text: "refuses the key" in text)
        self._host.do(f"echo {self._host.lune.key} > {mine}; systemctl reload harvester")
        self._host.until_status(_works)
        self._host.configure()
        self._host.do(f"rm {mine}; systemctl restart harvester")
        return ""

    def gives_up(self) -> str:
        """Stay down after exit 78, and 77."""
        self._host.do("systemctl stop harvester")
        self._host.configure(end="[harvset]\n")
        self._host.do("systemctl start harvester", exits=1)
        seen = [self._result("harvester")]
        self._host.configure()
        self._host.lune.ask("POST", "/faults", {"name": "revoked-key"})
        self._host.do("systemctl start harvester-drain", exits=1)
        seen.append(self._result("harvester-drain"))
        self._host.lune.ask("DELETE", "/faults/revoked-key")
        time.sleep(_UNCHANGED)
        states = [self._host.show("ActiveState", unit) for unit in ("harvester", "harvester-drain")]
        if (seen, states) != (["78", "77"], ["failed", "failed"]):
            fail(f"exited with {seen}, now {states}")
        self._host.do("systemctl reset-failed; systemctl start harvester")
        return "78 of the daemon, 77 of a drain"

    def stops(self) -> str:
        """Stop quickly."""
        took = []
        for _ in range(3):
            self._host.do("systemctl start harvester")
            self._host.until_status(lambda text: "last sweep" in text)
            began = time.monotonic()
            self._host.do("systemctl stop harvester")
            took.append(time.monotonic() - began)
            if (result := self._host.show("Result")) != "success":
                fail(result)
        return judge(took, _STOPS_WITHIN)

    def drains(self) -> str:
        """Store by the timer, and leave the work to a daemon."""
        before = self._host.stored()
        self._host.lune.ask("POST", "/clock", {"advance": 90 * 86_400})
        self._host.follow("enable --now harvester-drain.timer")
        following = self._host.show("NextElapseUSecRealtime", "harvester-drain.timer")
        if (
            not re.search(r" 02:(1[5-9]|[23]\d|4[0-5]):", following)
            or self._host.show("ActiveState") == "active"
        ):
            fail(f"the timer elapses {following}")
        soon = "[Timer]\nOnCalendar=\nOnActiveSec=1s\nRandomizedDelaySec=0\nAccuracySec=100ms\n"
        self._host.write("/etc/systemd/system/harvester-drain.timer.d/soon.conf", soon)
        self._host.do("systemctl restart harvester-drain.timer")
        until(lambda: self._host.journal("Finished harvester-drain"), "the drain")
        stored = self._host.stored() - before
        if stored <= 0:
            fail("nothing was stored")
        self._host.do("systemctl disable --now harvester-drain.timer")
        self._host.do("systemctl enable --now harvester")
        self._host.do("systemctl start harvester-drain")  # 75 is no failure
        beside = self._result("harvester-drain")
        if (beside, self._host.show("ActiveState")) != ("75", "active"):
            fail(f"beside the daemon: {beside}, the daemon {self._host.show('ActiveState')}")
        return (
            f"{following} by itself; {stored} stored once a drop-in made it soon; exit 75 and no "
            "failure beside the daemon"
        )

    def reboots(self) -> str:
        """Go on after a reboot."""
        self._host.place("1.0")
        before = self._host.stored()
        self._host.machine.power_off()
        self._host.lune.ask("POST", "/clock", {"advance": 90 * 86_400})
        self._host.machine.boot()
        until(lambda: self._host.stored() > before, "a certificate after the boot")
        return f"{before} certificates before, {self._host.stored()} after"

    def upgrades(self) -> str:
        """Migrate under a next release, and store with it."""
        folder = self._proof.folder
        before = self._host.stored()
        schema = write_next_release(folder / "next")
        wheel = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir")
        run(*wheel, folder / "next-wheel", folder / "next")
        shutil.copytree(folder / "next-wheel", self._host.machine.root / "root" / "next")
        self._host.do(
            f"{OFFLINE} /opt/harvester/bin/pip install -q /root/next/*.whl; "
            "systemctl restart harvester"
        )
        told = self._host.journal('"event": "ledger upgraded"')
        if not told or f'"after": "{schema}"' not in told[-1]["MESSAGE"]:
            fail("the ledger was not upgraded")
        self._host.place("2.0")
        self._host.lune.ask("POST", "/clock", {"advance": 90 * 86_400})
        until(lambda: self._host.stored() > before, "a certificate of the next release")
        kept = self._host.do("ls /var/lib/private/harvester | grep before-")
        return f"{self._host.harvester('--version')}, schema {schema}, backup {kept}"

    def logs(self) -> str:
        """Find warnings by their priority."""
        counts = {}
        for priority in ("err", "warning", "info"):
            words = f"journalctl -u harvester -o cat -p {priority} _COMM=harvester"
            counts[priority] = len(self._host.do(words).splitlines())
        self._host.follow("journalctl -u harvester -p warning")
        if not 0 < counts["err"] <= counts["warning"] < counts["info"]:
            fail(f"lines by priority: {counts}")
        last = self._host.do(
            "journalctl -u harvester -o cat -p warning _COMM=harvester"
        ).splitlines()
        json.loads(next(line for line in reversed(last) if line.startswith("{")))
        return ", ".join(f"{count} at {name} or above" for name, count in counts.items())

    def ends(self) -> str:
        """Stop the service; nothing has failed."""
        self._host.do("systemctl stop harvester")
        failed = self._host.do(
            "systemctl list-units --failed --quiet --no-legend --plain 'harvester*'"
        )
        if failed:
            fail(failed)
        return ""

    def verify(self) -> str:
        """Hold ledger and archive against each other."""
        return self._host.harvester("verify").splitlines()[0]

    def _is_replaced(self, blow: str) -> str:
        before = self._host.show("MainPID")
        self._host.do(blow)
        took = until(
            lambda: (
                self._host.show("MainPID") not in {before, "0"}
                and self._host.show("SubState") == "running"
            ),
            "another process",
        )
        return f"running again after {took:.1f} s"

    def _result(self, unit: str) -> str:
        return self._host.show("ExecMainStatus", unit)


def _works(text: str) -> bool:
    return "refuses the key" not in text and "last sweep" in text
