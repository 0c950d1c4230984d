"""Debian: packages of this machine, and a plain installation in a folder to build machines from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from proofs.steps import CannotProve, note, run

RELEASE = "bookworm"
_INCLUDED = "systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates"


def install_tools(packages: Mapping[str, str]) -> None:
    """Install by apt the packages of those tools that are missing, given as tool: package.

    ``CannotProve`` where that cannot be.
    """
    if os.geteuid() != 0:
        raise CannotProve("needs root")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    lacking = sorted({package for tool, package in packages.items() if not shutil.which(tool)})
    if not lacking:
        return
    if not shutil.which("apt-get"):
        raise CannotProve(f"needs {', '.join(lacking)}")
    note(f"installing {' '.join(lacking)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", env=quiet)
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *lacking, env=quiet)


def plain_tree() -> Path:
    """Return the folder of a freshly installed Debian with Python, which nobody may change.

    Built the first time, and kept in ``$HARVESTER_PROVE_CACHE`` (else below ``$XDG_CACHE_HOME`` or
    ``~/.cache``). Needs debootstrap and root.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(os.environ.get("HARVESTER_PROVE_CACHE") or Path(base, "harvester-prove")).resolve()
    tree = cache / RELEASE
    if not tree.exists():
        note(f"building {tree}, which takes some minutes the first time")
        partial = cache / f".{RELEASE}.{os.getpid()}"
        cache.mkdir(parents=True, exist_ok=True)
        try:
            include = f"--include={_INCLUDED}"
            run("debootstrap", "--variant=minbase", include, RELEASE, partial, within=3600)
            partial.rename(tree)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return tree
