"""A Debian machine of its own, with systemd as its first process, in a folder: systemd-nspawn."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from proofs.steps import CannotProve, Proof, fail, note, run, until

_PACKAGES = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
_INCLUDED = "systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates"
_RELEASE = "bookworm"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


def need_tools() -> None:
    """Install by apt what builds and boots a machine; ``CannotProve`` where that cannot be."""
    if os.geteuid() != 0:
        raise CannotProve("needs root")
    lacking = [package for tool, package in _PACKAGES.items() if shutil.which(tool) is None]
    if not lacking:
        return
    if shutil.which("apt-get") is None:
        raise CannotProve(f"needs {' and '.join(lacking)}")
    note(f"installing {' '.join(lacking)}")
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-y", "-qq", *lacking)


def plain_tree(cache: Path) -> Path:
    """Return a freshly installed Debian in a folder of the cache, building it the first time."""
    tree = cache / _RELEASE
    if not tree.exists():
        note(f"building {tree}, which takes some minutes the first time")
        partial = cache / f".{_RELEASE}.{os.getpid()}"
        cache.mkdir(parents=True, exist_ok=True)
        try:
            include = f"--include={_INCLUDED}"
            run("debootstrap", "--variant=minbase", include, _RELEASE, partial, within=3600)
            partial.rename(tree)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return tree


class Machine:
    """A machine in a folder, off at first. It shares this machine's network, loopback included.

    Ended at the end of the proof, if it runs then, with everything in it.
    """

    def __init__(self, proof: Proof, plain: Path) -> None:
        self.root = proof.folder / "machine"
        self._name = f"prove-{os.getpid()}"
        self._init = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        run("cp", "--archive", "--reflink=auto", plain, self.root)
        proof.undo.callback(self._end)

    def boot(self) -> None:
        """Boot, and wait until systemd says that the machine is up."""
        words = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"]
        self._nspawn = subprocess.Popen(
            [*words, f"--directory={self.root}", f"--machine={self._name}", "--console=pipe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        until(lambda: children.read_text().split(), "its first process")
        self._init = int(children.read_text().split()[0])
        until(self._is_up, "booted", within=300.0)

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
