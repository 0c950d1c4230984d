"""The process itself: its standard streams, its signals, and that its memory stays its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys

_STDERR = 2
_PR_SET_DUMPABLE = 4


def occupy_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed.

    Otherwise the next file opened, the ledger say, would be what a stray write to stderr hits.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # Python found it closed
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))


def handle_sigterm() -> None:
    """Let SIGTERM interrupt a container's first process, for which the kernel ignores it.

    Everywhere else it ends the process, which service managers know for a clean end; the commands
    that have something to finish listen for themselves.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def forbid_dumps() -> None:
    """Keep the key off the disk and from other processes of this user: no core, no peeking."""
    import ctypes
    import resource

    # ValueError is how Python says EPERM; where limits may not be set, the service manager set it.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
