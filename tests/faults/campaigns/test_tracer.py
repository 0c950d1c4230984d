"""The fault comes at the call that is named, whichever thread makes it; no other call fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disks import TRACER

pytestmark = pytest.mark.usefixtures("traceable")

TWO_THREADS = """
import os, sys, threading
def make(names):
    for name in names:
        try:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        except OSError as error:
            print(name, error.errno)
for names in ("abc", "def"):
    thread = threading.Thread(target=make, args=(names,))
    thread.start()
    thread.join()
print("done")
"""


def traced(folder: Path, *options: str, code: str = TWO_THREADS) -> tuple[str, Any, list[str]]:
    """Return what a program printed, the tracer's report, and the files the program made."""
    report = folder.with_name("report.json")
    program = (sys.executable, "-S", "-B", "-c", code)
    ran = subprocess.run(
        (sys.executable, "-S", TRACER, "--report", report, *options, *program),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return (
        ran.stdout,
        json.loads(report.read_text()),
        sorted(path.name for path in folder.iterdir()),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    return made


def test_without_a_fault_the_calls_of_all_threads_are_counted(folder: Path) -> None:
    printed, report, made = traced(folder)
    assert (printed, made) == ("done\n", list("abcdef"))
    assert report == {"code": 0, "calls": 6, "hit": None}


@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_a_kill_comes_before_the_call_of_that_number_in_whichever_thread(
    folder: Path, at: int
) -> None:
    printed, report, made = traced(folder, "--at", str(at))
    assert (printed, made) == ("", list("abcdef")[: at - 1])
    assert report == {"code": -9, "calls": at, "hit": f"openat {'abcdef'[at - 1]}"}


def test_a_call_fails_once_and_is_not_made(folder: Path) -> None:
    printed, report, made = traced(folder, "--at", "5", "--fault", "ENOSPC")
    assert (printed, made) == ("e 28\ndone\n", list("abcdf"))
    assert (report["code"], report["hit"]) == (0, "openat e")


def test_calls_fail_for_ever_from_one_on(folder: Path) -> None:
    printed, _, made = traced(folder, "--at", "5", "--fault", "EIO", "--ever")
    assert (printed, made) == ("e 5\nf 5\ndone\n", list("abcd"))


def test_calls_that_change_no_file_are_not_counted(folder: Path) -> None:
    code = (
        "import os\nos.write(os.pipe()[1], b'x')\nos.write(os.open(os.devnull, os.O_WRONLY), b'x')"
    )
    _, report, _ = traced(folder, code=code)
    assert report["calls"] == 0


def test_calls_of_one_name_are_counted_alone(folder: Path) -> None:
    code = "import os\nfor name in 'ab':\n os.mkdir(name)\n os.rmdir(name)"
    _, report, made = traced(folder, "--at", "2", "--only", "rmdir", code=code)
    assert (report["hit"], made) == ("rmdir b", ["b"])


def test_a_program_that_forks_gets_the_fault_in_its_child_too(folder: Path) -> None:
    code = "import os\npid = os.fork()\nos.mkdir('child' if not pid else 'parent')\n"
    code += "if pid: os.waitpid(pid, 0)"
    _, report, made = traced(folder, code=code)
    assert (report["calls"], made) == (2, ["child", "parent"])
