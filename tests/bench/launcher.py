"""Run a command and write what it cost to a descriptor: ``launcher.py FD COMMAND...``.

A process of its own, since the kernel counts the memory of whoever starts a command to that
command's peak (getrusage(2)): this one is as small as Python gets. See
:mod:`tests.bench.processes`.
"""

import os
import sys
import time


def main() -> None:
    """Run it; write exit code, wall s, CPU s, peak KiB, voluntary switches, with spaces between."""
    report, *command = sys.argv[1:]
    os.set_inheritable(int(report), False)
    began = time.monotonic()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    line = f"{code} {wall} {cpu} {usage.ru_maxrss} {usage.ru_nvcsw}"
    os.write(int(report), line.encode())


if __name__ == "__main__":
    main()
