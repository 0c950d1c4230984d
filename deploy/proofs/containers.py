"""An engine, a base image and wheels for the Docker proof, on a machine that may have none."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proofs.debian import install_tools, plain_tree
from proofs.steps import REPOSITORY, Proof, StepFailed, note, run, until

BASE = "python:3.13-slim-bookworm"
_TOOLS = {"dockerd": "docker.io", "docker": "docker.io", "debootstrap": "debootstrap"}
_GLIBCS = ("2_28", "2_24", "2_17", "2_12", "2_5")
"""Of the manylinux wheels that run on the base image, which pip takes by name only."""


def install_engine() -> None:
    """Install what is missing of an engine, compose and what makes a base image."""
    install_tools(_TOOLS)
    if compose_command() is None:
        install_tools({"docker-compose": "docker-compose"})


def compose_command() -> tuple[str, ...] | None:
    """Return how compose is called here: the engine's plugin, or the older program."""
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else None


def answering_engine(proof: Proof) -> str:
    """Return the version of the engine; where none answers one is started, all in the folder."""
    if not _answers():
        _start_engine(proof)
    return run("docker", "version", "--format", "{{.Server.Version}}").strip()


def _answers() -> bool:
    asked = subprocess.run(["docker", "info"], capture_output=True, check=False)
    return asked.returncode == 0 and b"ERROR" not in asked.stderr


def _start_engine(proof: Proof) -> None:
    folder = proof.folder / "engine"
    folder.mkdir()
    socket = f"unix://{folder}/docker.sock"
    log = proof.undo.enter_context((folder / "log").open("wb"))
    engine = subprocess.Popen(
        [
            "dockerd",
            *("--host", socket),
            *("--data-root", folder / "data"),
            *("--exec-root", folder / "exec"),
            *("--pidfile", folder / "pid"),
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    proof.undo.callback(_end_engine, engine, folder)
    os.environ["DOCKER_HOST"] = socket
    proof.undo.callback(os.environ.pop, "DOCKER_HOST", None)
    until(_answers, f"an engine that answers ({folder / 'log'})")


def _end_engine(engine: subprocess.Popen[bytes], folder: Path) -> None:
    engine.send_signal(signal.SIGTERM)
    try:
        engine.wait(60)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()
    # The network namespaces of builds stay mounted.
    mounts = Path("/proc/self/mounts").read_text("utf-8").splitlines()
    for mounted in reversed([line.split()[1] for line in mounts]):
        if mounted.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mounted], check=False)


def base_image(proof: Proof, name: str) -> str:
    """Return the base image to build on: Python's, or Debian with its Python under this name."""
    if given := os.environ.get("PROVE_BASE_IMAGE"):
        return given
    with contextlib.suppress(StepFailed, subprocess.TimeoutExpired):
        run("docker", "pull", "--quiet", BASE, within=120)
        return BASE
    note(f"{BASE} cannot be pulled: Debian with its own Python stands in for it")
    # Without what apt keeps for itself: nothing is installed in it any more.
    without = ("--exclude=./var/cache/apt", "--exclude=./var/lib/apt/lists")
    pack: list[str | Path] = ["tar", "-C", plain_tree(), *without, "-c", "."]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
        run("docker", "import", "-", name, stdin=tar.stdout)
    proof.undo.callback(forget_image, name)
    return name


def serve_wheels(proof: Proof, base: str) -> str:
    """Gather the wheels for the base image's Python; return the URL that serves them here.

    So that a build needs no index: behind a proxy with certificates of its own, pip in a build
    trusts nobody.
    """
    python = run("docker", "run", "--rm", base, "python3", "-c", _TELL_VERSION).strip()
    folder, pip = proof.folder / "wheels", proof.folder / "pip"
    run(sys.executable, "-m", "venv", pip)
    machine = platform.machine()
    platforms = [f"--platform=manylinux_{glibc}_{machine}" for glibc in _GLIBCS]
    platforms += [f"--platform=manylinux{old}_{machine}" for old in ("2014", "2010", "1")]
    constraints = REPOSITORY / "deploy" / "constraints.txt"
    run(
        *(f"{pip}/bin/pip", "download", "--quiet", "--only-binary=:all:", *platforms),
        *(f"--python-version={python}", f"--constraint={constraints}"),
        *(f"--dest={folder}", *requirements()),
    )
    log = proof.undo.enter_context((proof.folder / "wheels.log").open("wb"))
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL
    )
    proof.undo.callback(server.wait)
    proof.undo.callback(server.kill)
    said = b"" if server.stdout is None else server.stdout.readline()
    return said.decode().partition("(")[2].partition(")")[0]


_TELL_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def requirements() -> list[str]:
    """Return what the project needs to be built, to run and to be tested."""
    project: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    return [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
    ]


def build(proof: Proof, tag: str, dockerfile: Path, *, wheels: str, **arguments: str) -> None:
    """Build an image from the repository with the wheels of ``serve_wheels``; forget it later.

    Its stages are built first under names of their own: unnamed they would stay for ever.
    """
    arguments |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels}
    given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    stages = re.findall(r"^FROM .* AS (\w+)$", dockerfile.read_text("utf-8"), re.MULTILINE)
    for stage in (*stages, ""):
        name = f"{tag}-{stage}" if stage else tag
        proof.undo.callback(forget_image, name)
        target = (f"--target={stage}",) if stage else ()
        run(
            *("docker", "build", "--quiet", "--network", "host", *given, *target),
            *("--tag", name, "--file", str(dockerfile), str(REPOSITORY)),
        )


def forget_image(tag: str) -> None:
    """Remove an image, and the layers nothing else uses."""
    subprocess.run(["docker", "image", "rm", "--force", tag], capture_output=True, check=False)


def forget_container(name: str) -> None:
    """Remove a container, also one that runs; there may be none."""
    subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


def inspect(*what: str) -> Any:
    """Return the document the engine has of a container or an image."""
    return json.loads(run("docker", "inspect", *what))[0]


def flags_of(container: str) -> Sequence[str]:
    """Return what a running container was confined by, as flags for another one."""
    config, host = inspect(container)["Config"], inspect(container)["HostConfig"]
    flags = ["--user", config["User"], "--memory", str(host["Memory"])]
    flags += ["--memory-swap", str(host["MemorySwap"]), "--pids-limit", str(host["PidsLimit"])]
    flags += ["--read-only"] if host["ReadonlyRootfs"] else []
    flags += [f"--cap-drop={name}" for name in host["CapDrop"] or ()]
    flags += [f"--security-opt={one}" for one in host["SecurityOpt"] or ()]
    flags += [f"--tmpfs={path}:{options}" for path, options in (host["Tmpfs"] or {}).items()]
    return flags
