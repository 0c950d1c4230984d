"""A file system of a network's kind, served by a thread: an empty folder that answers.

The least of FUSE (the kernel's ``fuse.h``, version 7.31) for the kernel to mount it as, say,
``fuse.sshfs``: a folder can be entered and asked about, and every other request is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.needs import cannot, need

_LOOKUP, _FORGET, _GETATTR, _INIT = 1, 2, 3, 26
_REQUEST = struct.Struct("=IIQQ")
_ANSWER = struct.Struct("=IiQ")
_INIT_ANSWER = struct.pack("=IIIIHHIIHHI28x", 7, 31, 65536, 0, 12, 9, 65536, 1, 1, 0, 0)
_FOLDER = struct.pack("=QIIQQQQQQIIIIIIIIII", 60, 0, 0, 1, 0, 0, *[0] * 6, 0o40700, 2, *[0] * 5)


@contextmanager
def network_disk(at: Path, kind: str = "fuse.sshfs") -> Iterator[Path]:
    """Put it under a folder."""
    need(os.geteuid() == 0 and Path("/dev/fuse").exists(), "root and /dev/fuse")
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    at.mkdir(exist_ok=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"harvester-test", os.fsencode(at), kind.encode(), 0, options) != 0:
        os.close(device)
        cannot(f"this machine does not let us mount {kind}: {os.strerror(ctypes.get_errno())}")
    server = threading.Thread(target=_serve, args=(device,), name="network-disk")
    server.start()
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
        server.join(20)
        os.close(device)


def _serve(device: int) -> None:
    with contextlib.suppress(OSError):  # ENODEV: it was unmounted
        while True:
            _, call, number, _ = _REQUEST.unpack_from(os.read(device, 1 << 20))
            body = {_INIT: _INIT_ANSWER, _GETATTR: _FOLDER}.get(call)
            if call != _FORGET:
                error = 0 if body else -errno.ENOENT if call == _LOOKUP else -errno.ENOSYS
                answer = body or b""
                os.write(device, _ANSWER.pack(_ANSWER.size + len(answer), error, number) + answer)
