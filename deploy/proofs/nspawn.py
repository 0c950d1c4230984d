"""A Debian machine of its own, with systemd as its first process, in a folder: systemd-nspawn."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

from proofs.debian import plain_tree
from proofs.steps import Proof, fail, run, until

TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
"""What makes and boots a machine, and the package that each is in."""

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


class Machine:
    """A machine in a folder, off at first. It shares this machine's network, loopback included.

    Ended at the end of the proof, if it runs then, with everything in it. A kernel with the first
    version of control groups does not let it bound the memory of its services: there all of it is
    held to ``memory`` bytes together, which is stricter.
    """

    def __init__(self, proof: Proof, memory: int) -> None:
        self.memory = memory
        self.bounded_by = "enforced by the kernel"
        self._group = Path("/sys/fs/cgroup/memory") / f"prove-{os.getpid()}"
        self.root = proof.folder / "machine"
        self._name = f"prove-{os.getpid()}"
        self._init = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        run("cp", "--archive", "--reflink=auto", plain_tree(), self.root)
        if self._group.parent.is_dir():
            self.bounded_by = "the whole machine held to it by the kernel"
            self._group.mkdir()
            proof.undo.callback(self._group.rmdir)
            (self._group / "memory.limit_in_bytes").write_text(str(memory))
        proof.undo.callback(self._end)

    def boot(self) -> None:
        """Boot, and wait until systemd says that the machine is up."""
        words = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"]
        if self._group.is_dir():
            join = f'echo $$ > {self._group}/cgroup.procs && exec "$@"'
            words = ["sh", "-c", join, "sh", *words]
        self._init = 0
        self._nspawn = subprocess.Popen(
            [*words, f"--directory={self.root}", f"--machine={self._name}", "--console=pipe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._has_begun, "its first process")
        until(self._is_up, "booted", within=300.0)

    def _has_begun(self) -> bool:
        """Find the first process: nspawn has other children before it, that soon end."""
        nspawn = 0 if self._nspawn is None else self._nspawn.pid
        with contextlib.suppress(FileNotFoundError):
            for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
                status = Path("/proc", child, "status").read_text()
                if re.search(r"(?m)^NSpid:.*\t1$", status):
                    self._init = int(child)
                    return True
        return False

    def _is_up(self) -> bool:
        asked = subprocess.run(
            self._inside("systemctl", "is-system-running"),
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.stdout.strip() in {"running", "degraded"}

    def call(self, *words: str, exits: int = 0, within: float = 120.0) -> str:
        """Run a command in the machine as root; return its stdout, without the last line's end."""
        return run(*self._inside(*words), exits=exits, within=within, env=_ENVIRONMENT).strip()

    def shell(self, text: str, exits: int = 0) -> str:
        """Run a line of shell in the machine as root."""
        return self.call("sh", "-ec", f"cd /root; {text}", exits=exits, within=600.0)

    def _inside(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--all", "--", *words]

    def power_off(self) -> None:
        """Shut down in good order."""
        if self._nspawn is None:
            return
        self.call("systemctl", "--no-block", "poweroff")
        try:
            code = self._nspawn.wait(60)
        finally:
            self._end()
        if code != 0:
            fail(f"the machine ended with {code}")

    def _end(self) -> None:
        """End the machine at once if it still runs: the death of its first process is the end."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init or self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()
        self._nspawn = None
