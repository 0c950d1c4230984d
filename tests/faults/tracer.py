"""Inject a fault into a process at its N-th call that changes a file: a kill, or a failed call.

    python tracer.py --report FILE [--at N] [--fault KILL|EIO|...] [--ever] [--only NAME]
                     COMMAND...

A program of its own, on the standard library and ptrace. `strace --inject` counts each thread's
calls by themselves, so it cannot reach what one thread does after another has done as much; here
one count runs over all threads and all calls, in the order in which the kernel is asked. A seccomp
filter stops the process at these calls only, which leaves it as fast as it is.

The fault comes before anything of the call was done. Calls on sockets, pipes and devices are not
counted: what a log line or a wake-up does to them is gone with the process. Nor are pages written
through a mapping, which SQLite does in its ``-shm`` file alone, an index it makes anew.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import signal
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_CALLS: dict[str, tuple[int, int | None]] = {
    # Number on x86-64, and which argument is the path; None when the first is a descriptor.
    "write": (1, None),
    "pwrite64": (18, None),
    "writev": (20, None),
    "pwritev": (296, None),
    "pwritev2": (328, None),
    "sendfile": (40, None),
    "fsync": (74, None),
    "fdatasync": (75, None),
    "sync_file_range": (277, None),
    "ftruncate": (77, None),
    "fallocate": (285, None),
    "fchmod": (91, None),
    "fchown": (93, None),
    "truncate": (76, 0),
    "chmod": (90, 0),
    "fchmodat": (268, 1),
    "chown": (92, 0),
    "fchownat": (260, 1),
    "utimensat": (280, 1),
    "open": (2, 0),
    "openat": (257, 1),
    "creat": (85, 0),
    "mkdir": (83, 0),
    "mkdirat": (258, 1),
    "mknodat": (259, 1),
    "rmdir": (84, 0),
    "link": (86, 1),
    "linkat": (265, 3),
    "symlink": (88, 1),
    "symlinkat": (266, 2),
    "rename": (82, 1),
    "renameat": (264, 3),
    "renameat2": (316, 3),
    "unlink": (87, 0),
    "unlinkat": (263, 1),
}
_NAMES = {number: name for name, (number, _) in _CALLS.items()}
_OPENS = {"open": 1, "openat": 2}  # where their flags are

_TRACEME, _CONT, _GETREGS, _SETREGS, _SETOPTIONS = 0, 7, 12, 13, 0x4200
_EVENT_SECCOMP = 7
# fork, vfork, clone, exec, seccomp; and the traced die with their tracer.
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
_ANY_THREAD = 0x40000000  # __WALL
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF: a word, jump if it is k, return k
_TRACE, _ALLOW = 0x7FF00000, 0x7FFF0000

_REGISTERS = 27
_RAX, _ORIG_RAX = 10, 15
_ARGUMENTS = (14, 13, 12, 7)  # rdi, rsi, rdx, r10
_NO_CALL = 2**64 - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p, *[ctypes.c_ulong] * 2)


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """What happens at which call: an errno's name or ``KILL``, once or from there on.

    ``only`` counts the calls of one name alone; ``at`` 0 injects nothing and counts all.
    """

    at: int
    what: str = "KILL"
    ever: bool = False
    only: str | None = None


class Tracer:
    """Follows a command to its end; ``calls`` were counted, the first with a fault was ``hit``."""

    def __init__(self, fault: InjectedFault) -> None:
        self._fault = fault
        self._registers = (ctypes.c_ulonglong * _REGISTERS)()
        self.calls = 0
        self.hit: str | None = None

    def follow(self, main: int) -> int:
        """Return the exit code of a child that waits to be traced; negative for a signal's end."""
        os.waitpid(main, 0)  # it stopped itself
        _ptrace(_SETOPTIONS, main, _OPTIONS)
        _ptrace(_CONT, main)
        known = {main}
        while True:
            thread, status = os.waitpid(-1, _ANY_THREAD)
            if os.WIFSTOPPED(status):
                self._go_on(main, thread, status, new=thread not in known)
                known.add(thread)
            elif thread == main:
                return os.waitstatus_to_exitcode(status)

    def _go_on(self, main: int, thread: int, status: int, *, new: bool) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP:
            self._consider(main, thread)
        # The stop a new thread begins with is for us; other signals are for the process.
        ours = event or (new and number == signal.SIGSTOP)
        _ptrace(_CONT, thread, 0 if ours else number)

    def _consider(self, main: int, thread: int) -> None:
        """Count the call a thread is about to make, if it changes a file, and inject the fault."""
        if not _ptrace(_GETREGS, thread, ctypes.addressof(self._registers)):
            return  # killed meanwhile
        name = _NAMES[self._registers[_ORIG_RAX]]
        arguments = [self._registers[index] for index in _ARGUMENTS]
        target = _target(thread, name, arguments)
        if target is None or self._fault.only not in (None, name):
            return
        self.calls += 1
        at = self._fault.at
        if not at or self.calls < at or (self.calls > at and not self._fault.ever):
            return
        self.hit = self.hit or f"{name} {target}"
        if self._fault.what == "KILL":
            os.kill(main, signal.SIGKILL)
            return
        self._registers[_ORIG_RAX] = _NO_CALL
        self._registers[_RAX] = 2**64 - getattr(errno, self._fault.what)
        _ptrace(_SETREGS, thread, ctypes.addressof(self._registers))


def _target(thread: int, name: str, arguments: list[int]) -> str | None:
    """Return the file a call would change; None when it would change none."""
    position = _CALLS[name][1]
    try:
        if position is None:
            path = str(Path(f"/proc/{thread}/fd/{arguments[0] & 0xFFFFFFFF}").readlink())
            # Sockets and pipes have names like socket:[7].
            device = path.startswith("/dev/") and not path.startswith("/dev/shm/")
            return path if path.startswith("/") and not device else None
        if name in _OPENS and not arguments[_OPENS[name]] & (os.O_CREAT | os.O_TRUNC):
            return None
        return _string(thread, arguments[position])
    except OSError:
        return None  # a wrong descriptor, or killed meanwhile


def _string(thread: int, address: int) -> str:
    memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
    try:
        data = os.pread(memory, 4096 - address % 4096, address)
    finally:
        os.close(memory)
    return data.partition(b"\0")[0].decode(errors="replace")


def wait_to_be_traced() -> None:
    """Stop until the parent follows, and have the kernel tell it of calls from then on."""
    _ptrace(_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    _install_filter()


def _become(command: list[str]) -> NoReturn:
    try:
        wait_to_be_traced()
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot be traced: {error}\n".encode())
    os._exit(127)


def _install_filter() -> None:
    """Have the kernel stop this process, and what it becomes, at the calls of the table only."""
    numbers = sorted(_NAMES)
    program = [(_LOAD, 0, 0, 0)]  # the call's number is the first word of the data
    program += [(_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _TRACE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) or _libc.prctl(
        _PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")


def _ptrace(request: int, thread: int, data: int = 0) -> bool:
    """Ask the kernel; False when the thread is gone."""
    if _libc.ptrace(request, thread, None, data) != -1:
        return True
    number = ctypes.get_errno()
    if number == errno.ESRCH:
        return False
    raise OSError(number, os.strerror(number))


def main() -> None:
    """Run the command with the fault that the arguments name, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--at", type=int, default=0)
    parser.add_argument("--fault", default="KILL")
    parser.add_argument("--ever", action="store_true")
    parser.add_argument("--only", choices=_CALLS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    tracer = Tracer(InjectedFault(given.at, given.fault, given.ever, given.only))
    child = os.fork()
    if child == 0:
        _become(given.command)
    code = tracer.follow(child)
    report = {"code": code, "calls": tracer.calls, "hit": tracer.hit}
    given.report.write_text(json.dumps(report), "utf-8")


if __name__ == "__main__":
    main()
