"""What a run of the program did to its files, from a strace of the real process.

Only what changes the disk is kept, and what was acknowledged: lines on stderr and a good end. A
call on the files below the root that is not known here is an error, so that a new way of writing
cannot slip past the model unseen.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_CALLS = (
    "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,lseek,fsync,fdatasync,"
    "link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "truncate,ftruncate,fallocate,sendfile,copy_file_range,splice,exit_group"
)
_LONGEST = 1 << 24
_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?).*")
_ARGUMENT = re.compile(r'"([^"]*)"|(\w+)<([^>]*)>|([^,\s]+)')
_KINDS = {
    name: kind
    for kind, names in {
        "mkdir": ("mkdir", "mkdirat"),
        "unlink": ("unlink", "unlinkat", "rmdir"),
        "link": ("link", "linkat"),
        "rename": ("rename", "renameat", "renameat2"),
    }.items()
    for name in names
}
_REBUILT = "-shm"
"""The index of SQLite's write-ahead log: mapped into memory, and made anew after a crash."""


@dataclass(frozen=True, slots=True)
class Op:
    """One step: what, on which file (absolute), by which thread.

    ``kind`` is create, mkdir, write, truncate, link, unlink, rename or sync; or logged, when
    ``data`` went to stderr, or exit, when the run ended well and so acknowledged ``data``.
    ``began`` counts the steps that had ended when this one began. ``target`` is the other name of a
    link or rename, ``offset`` where a write begins or how long a truncated file is.
    """

    kind: str
    path: str
    thread: int = 0
    began: int = 0
    data: bytes = b""
    offset: int = 0
    target: str = ""


def strace(output: Path) -> tuple[str, ...]:
    """Return the command line to put before a program's; its trace goes to ``output``."""
    return (
        *("strace", "--seccomp-bpf", "-f", "-y", "-xx", "-qq", "-s", str(_LONGEST)),
        *("-o", str(output), "-e", f"trace={_CALLS}", "-e", "signal=none"),
    )


def read_trace(text: str, root: Path, acknowledged: bytes) -> list[Op]:
    """Return the steps below ``root`` in the order in which they ended.

    ``acknowledged`` is what a good end stands for. ``ValueError`` for a call that is not known.
    """
    reader = _Reader(str(root), acknowledged)
    steps: list[Op] = []
    ends: list[int] = []
    for thread, began, ended, call in _calls(text):
        for op in reader.read(call):
            steps.append(replace(op, thread=thread, began=bisect_left(ends, began)))
            ends.append(ended)
    return steps


def renumbered(steps: Sequence[Op]) -> list[Op]:
    """Return steps put in another order as if each began when the one before it had ended."""
    return [replace(op, began=at) for at, op in enumerate(steps)]


def _calls(text: str) -> Iterator[tuple[int, int, int, str]]:
    """Yield thread, lines on which it began and ended, and the text of each call, as they end."""
    started: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines()):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"not a line of strace: {line[:200]}")
        thread, call = int(found[1]), found[2]
        if call.endswith("<unfinished ...>"):
            started[thread] = number, call.removesuffix("<unfinished ...>").rstrip()
        elif call.startswith("<... "):
            began, head = started.pop(thread)
            yield thread, began, number, head + call.partition(" resumed>")[2]
        elif not call.startswith(("+++", "---")):
            yield thread, number, number, call


@dataclass(frozen=True, slots=True)
class _Argument:
    """A string, a descriptor with the path of what it stands for, or a word."""

    text: str = ""
    data: bytes = b""
    path: str = ""


class _Reader:
    """Turns calls into steps; knows where each open file is written next."""

    def __init__(self, root: str, acknowledged: bytes) -> None:
        self._root = root
        self._acknowledged = acknowledged
        self._positions: dict[tuple[str, str], int] = {}

    def read(self, call: str) -> list[Op]:
        """Return the steps a call stands for: none when it failed or is of no concern."""
        found = _CALL.fullmatch(call)
        if found is None:
            raise ValueError(f"not a call: {call[:200]}")
        name, result = found[1], found[3]
        if result.startswith("-") or "(deleted)" in call:  # what no name leads to is lost anyway
            return []
        arguments = [_argument(one) for one in _ARGUMENT.finditer(found[2])]
        if name == "exit_group":
            return [Op("exit", "", data=self._acknowledged)] if arguments[0].text == "0" else []
        if name == "write" and arguments[0].text == "2":
            return [Op("logged", "", data=arguments[1].data)]
        steps = self._steps(name, arguments, result)
        return [op for op in steps if self._ours(op.path) or self._ours(op.target)]

    def _steps(self, name: str, given: list[_Argument], result: str) -> list[Op]:
        if name in {"open", "openat"}:
            return self._open(given, result)
        if name == "lseek":
            self._positions[given[0].text, given[0].path] = int(result)
            return []
        if name in {"write", "pwrite64", "fsync", "fdatasync", "ftruncate"}:
            return self._on_descriptor(name, given, int(result))
        paths = list(self._paths(given))
        kind = _KINDS.get(name)
        if kind is not None:
            return [Op(kind, paths[0], target=paths[1] if len(paths) > 1 else "")]
        if any(self._ours(path) for path in [*paths, *(one.path for one in given)]):
            raise ValueError(f"the model of the disk does not know {name}")
        return []

    def _open(self, given: list[_Argument], result: str) -> list[Op]:
        [path] = self._paths(given)
        flags = set(next(one.text for one in given if one.text.startswith("O_")).split("|"))
        if not self._ours(path) or "O_RDONLY" in flags:
            return []
        if flags & {"O_APPEND", "O_TMPFILE"}:
            raise ValueError(f"the model of the disk does not know {sorted(flags)}")
        self._positions[result, path] = 0
        steps = [Op("create", path)] if "O_CREAT" in flags else []
        return [*steps, Op("truncate", path)] if "O_TRUNC" in flags else steps

    def _on_descriptor(self, name: str, given: list[_Argument], result: int) -> list[Op]:
        file, path = (given[0].text, given[0].path), given[0].path
        if name == "write":
            at = self._positions.get(file, 0)
            self._positions[file] = at + result
            return [Op("write", path, data=given[1].data[:result], offset=at)]
        if name == "pwrite64":
            return [Op("write", path, data=given[1].data[:result], offset=int(given[3].text))]
        if name == "ftruncate":
            return [Op("truncate", path, offset=int(given[1].text))]
        return [Op("sync", path)]

    def _paths(self, given: list[_Argument]) -> Iterator[str]:
        """Yield the absolute paths a call names, each against the folder given before it."""
        base = self._root
        for one in given:
            if one.path:
                base = one.path
            elif one.data:
                yield str(Path(base, os.fsdecode(one.data)))

    def _ours(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self._root}/") and not path.endswith(_REBUILT)


def _argument(found: re.Match[str]) -> _Argument:
    quoted, descriptor, path, word = found.groups()
    if quoted is not None:
        return _Argument(data=_unhex(quoted))
    if descriptor is not None:
        return _Argument(descriptor, path=os.fsdecode(_unhex(path)))
    return _Argument(str(word))


def _unhex(text: str) -> bytes:
    # Pipes and sockets are named in plain letters.
    return bytes.fromhex(text.replace("\\x", "")) if text.startswith("\\x") else text.encode()
