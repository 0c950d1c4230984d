"""A file system as a power cut leaves it: what surely is on disk, and what may be.

The model: changes to one folder reach the disk as a prefix of their order. What was written to a
file since its last sync reaches it sector by sector, in any choice: nothing, all, the new length
without the data, or parts. Syncing a file also makes the entry durable under which it was made;
syncing a folder makes its entries durable, and nothing above it. Modes and times are not modelled.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.campaigns.strace_log import Op

_SECTOR = 512


@dataclass(slots=True)
class File:
    """``durable`` is what is surely on disk, ``pending`` the changes since, with their step."""

    durable: bytes = b""
    pending: list[tuple[int, Op]] = field(default_factory=list)
    made_in: tuple[Folder, int] | None = None


@dataclass(slots=True)
class Folder:
    """``changes`` say what names stand for from then on, None for nothing.

    ``durable`` is how many of them are surely on disk, ``steps`` when each was made.
    """

    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    durable: int = 0

    def entries(self, count: int | None = None) -> dict[str, File | Folder]:
        """Return what each name stands for after the first ``count`` changes, or after all."""
        found: dict[str, File | Folder | None] = {}
        for change in self.changes[:count]:
            found |= change
        return {name: node for name, node in found.items() if node is not None}


@dataclass(frozen=True, slots=True)
class State:
    """What a crash left: folders, files by number, numbers by path, all below the root."""

    folders: tuple[str, ...]
    names: tuple[tuple[str, int], ...]
    contents: Mapping[int, bytes]

    def fingerprint(self) -> int:
        """Return a number that is the same for equal states."""
        return hash((self.folders, tuple((path, self.contents[n]) for path, n in self.names)))

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes; None when there is none."""
        number = dict(self.names).get(path)
        return None if number is None else self.contents[number]

    def write_to(self, root: Path) -> None:
        """Lay the state out below an existing folder, hard links included."""
        for folder in self.folders:
            (root / folder).mkdir(mode=0o700)
        first: dict[int, Path] = {}
        for name, number in self.names:
            path = root / name
            if number in first:
                os.link(first[number], path)
                continue
            path.write_bytes(self.contents[number])
            path.chmod(0o600)
            first[number] = path


class Disk:
    """Plays steps below ``root``, and tells after any of them what a crash would leave."""

    def __init__(self, root: Path, start: State | None = None) -> None:
        self._root = str(root)
        self._top = Folder()
        self._step = 0
        if start is not None:
            self._begin_with(start)

    def play(self, op: Op) -> None:
        """Do one step as the running system sees it."""
        self._step += 1
        if op.kind in {"logged", "exit"}:
            return
        if op.kind == "sync":
            self._sync(op)
            return
        folder, name = self._parent(op.path)
        node = folder.entries().get(name)
        if op.kind in {"write", "truncate"}:
            assert isinstance(node, File), op
            node.pending.append((self._step, op))
        elif op.kind == "create":
            if node is None:
                self._change(folder, {name: File(made_in=(folder, len(folder.changes) + 1))})
        elif op.kind == "mkdir":
            self._change(folder, {name: Folder()})
        elif op.kind == "unlink":
            self._change(folder, {name: None})
        else:
            other, new_name = self._parent(op.target)
            if op.kind == "link":
                self._change(other, {new_name: node})
            elif other is folder:
                self._change(folder, {name: None, new_name: node})
            else:
                raise ValueError("the model of the disk does not know renames across folders")

    def crash(self, rng: random.Random | None = None, way: int = 0) -> State:
        """Return what a crash now leaves: in one of the ``WAYS``, or drawn at random.

        The ways are each of: only the entries that are sure, or all; with of each file only what
        is sure, the new length without the new data, or all.
        """
        every_entry, choice = divmod(way, len(_CHOICES))
        folders: list[str] = []
        names: list[tuple[str, int]] = []
        contents: dict[int, bytes] = {}
        numbers: dict[int, int] = {}

        def walk(folder: Folder, above: str) -> None:
            count = len(folder.changes) if every_entry else folder.durable
            if rng is not None:
                count = rng.randint(folder.durable, len(folder.changes))
            for name, node in sorted(folder.entries(count).items()):
                if isinstance(node, Folder):
                    folders.append(f"{above}{name}")
                    walk(node, f"{above}{name}/")
                    continue
                number = numbers.setdefault(id(node), len(numbers))
                if number not in contents:
                    contents[number] = _content(node, choice, rng)
                names.append((f"{above}{name}", number))

        walk(self._top, "")
        return State(tuple(folders), tuple(names), contents)

    def _parent(self, path: str) -> tuple[Folder, str]:
        *above, name = path.removeprefix(f"{self._root}/").split("/")
        folder = self._top
        for part in above:
            below = folder.entries()[part]
            assert isinstance(below, Folder)
            folder = below
        return folder, name

    def _change(self, folder: Folder, change: dict[str, File | Folder | None]) -> None:
        folder.changes.append(change)
        folder.steps.append(self._step)

    def _sync(self, op: Op) -> None:
        node: File | Folder | None = self._top
        if op.path != self._root:
            folder, name = self._parent(op.path)
            node = folder.entries().get(name)
        if isinstance(node, Folder):
            node.durable = max(node.durable, bisect_right(node.steps, op.began))
        elif node is not None:
            node.durable = _applied(node, [one for step, one in node.pending if step <= op.began])
            node.pending = [(step, one) for step, one in node.pending if step > op.began]
            if node.made_in is not None:
                folder, count = node.made_in
                folder.durable = max(folder.durable, count)

    def _begin_with(self, start: State) -> None:
        for path in start.folders:
            folder, name = self._parent(f"{self._root}/{path}")
            self._change(folder, {name: Folder()})
        files = {number: File(data) for number, data in start.contents.items()}
        for path, number in start.names:
            folder, name = self._parent(f"{self._root}/{path}")
            self._change(folder, {name: files[number]})
        self._settle(self._top)

    def _settle(self, folder: Folder) -> None:
        folder.durable = len(folder.changes)
        for node in folder.entries().values():
            if isinstance(node, Folder):
                self._settle(node)


def _content(file: File, choice: int, rng: random.Random | None) -> bytes:
    if not file.pending:
        return file.durable
    changes = [op for _, op in file.pending]
    if rng is not None:
        choice = rng.randrange(len(_CHOICES) + 1)
        if choice == len(_CHOICES):
            return _applied(file, list(_parts(changes, rng)))
    return _CHOICES[choice](file, changes)


def _applied(file: File, changes: Sequence[Op]) -> bytes:
    data = bytearray(file.durable)
    for op in changes:
        if op.kind == "truncate":
            del data[op.offset :]
            data.extend(bytes(op.offset - len(data)))
        else:
            data.extend(bytes(max(0, op.offset - len(data))))
            data[op.offset : op.offset + len(op.data)] = op.data
    return bytes(data)


def _hollow(file: File, changes: Sequence[Op]) -> bytes:
    """Give the file its new length, with nothing in what is new of it."""
    length = len(file.durable)
    for op in changes:
        length = op.offset if op.kind == "truncate" else max(length, op.offset + len(op.data))
    return file.durable[:length].ljust(length, b"\0")


def _parts(changes: Sequence[Op], rng: random.Random) -> Iterator[Op]:
    """Tear the changes into sectors and let some of them reach the disk."""
    share = rng.random()
    for op in changes:
        if op.kind == "truncate":
            if rng.random() < share:
                yield op
            continue
        for start in range(-(op.offset % _SECTOR), len(op.data), _SECTOR):
            if rng.random() < share:
                first = max(start, 0)
                data = op.data[first : start + _SECTOR]
                yield replace(op, data=data, offset=op.offset + first)


_CHOICES: tuple[Callable[[File, Sequence[Op]], bytes], ...] = (
    lambda file, _: file.durable,
    _hollow,
    _applied,
)

WAYS = 2 * len(_CHOICES)
"""How many ways a crash leaves things in without drawing lots."""
