"""A C library whose wall clock a test can step and whose disk it can stall, while commands run.

A small library is put before the commands' own. It adds what stands in a file to the wall
clock, as a person with ``date -s`` would, and leaves the monotonic clock as it is; and it lets
each fsync wait for as long as stands there.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.needs import need

_SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *set; /* seconds added to the clock, seconds an fsync waits, how many */

__attribute__((constructor)) static void map_settings(void)
{
    int file = open(getenv("FAKE_LIBC"), O_RDWR | O_CLOEXEC);
    void *mapped = mmap(NULL, 3 * sizeof *set, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    set = mapped == MAP_FAILED ? NULL : mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && set)
        now->tv_sec += set[0];
    return failed;
}

static void stall(void)
{
    if (!set || !set[1])
        return;
    __sync_fetch_and_add(&set[2], 1);
    sleep(set[1]);
}

int fsync(int file)
{
    stall();
    return syscall(SYS_fsync, file);
}

int fdatasync(int file)
{
    stall();
    return syscall(SYS_fdatasync, file);
}
"""


@dataclass(frozen=True, slots=True)
class FakeLibc:
    """The library and the file it reads; ``environment`` is for the command."""

    library: Path
    settings: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs in its environment to use this library."""
        return {"LD_PRELOAD": str(self.library), "FAKE_LIBC": str(self.settings)}

    def step_clock(self, seconds: int) -> None:
        """Set the clock this far ahead of the real one, or behind."""
        with self.settings.open("r+b") as file:
            file.write(struct.pack("q", seconds))

    def stall_disk(self, seconds: int) -> None:
        """Let every fsync from now on take this long."""
        with self.settings.open("r+b") as file:
            file.seek(8)
            file.write(struct.pack("q", seconds))

    def stalled_syncs(self) -> int:
        """Return how many fsyncs were made to wait so far."""
        return int(struct.unpack_from("q", self.settings.read_bytes(), 16)[0])


def build(folder: Path) -> FakeLibc:
    """Compile the library; the test is skipped where there is no compiler."""
    compiler = shutil.which("cc")
    need(compiler, "a C compiler")
    assert compiler is not None
    source, library, settings = (folder / f"fake_libc.{end}" for end in ("c", "so", "set"))
    source.write_text(_SOURCE)
    settings.write_bytes(struct.pack("qqq", 0, 0, 0))
    subprocess.run((compiler, "-shared", "-fPIC", "-o", library, source), check=True, timeout=60)
    return FakeLibc(library, settings)
