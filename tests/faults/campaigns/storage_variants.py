"""Weaker ways of storing, made of a recorded run: each must be seen to lose something.

The product is left as it is. Steps of its real run are left out, or put where a program that did
less would have put them; what they wrote stays the same, byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from tests.faults.campaigns.strace_log import Op, renumbered

STORED = b'"certificate stored"'
"""What the log says once a certificate's file and row are durable."""

_WAL = "-wal"
_PART = ".part"


@dataclass(frozen=True, slots=True)
class Variant:
    """How a run is changed, what that stands for, and the word for what must be found broken."""

    meaning: str
    change: Callable[[Sequence[Op], str], list[Op]]
    breaks: str


def _as_it_is(steps: Sequence[Op], archive: str) -> list[Op]:
    return list(steps)


def _no_file_sync(steps: Sequence[Op], archive: str) -> list[Op]:
    return [op for op in steps if not (op.kind == "sync" and op.path.endswith(_PART))]


def _no_folder_sync(steps: Sequence[Op], archive: str) -> list[Op]:
    folders = {archive, *(op.path for op in steps if op.kind == "mkdir")}
    ours = {path for path in folders if f"{path}/".startswith(f"{archive}/")}
    return [op for op in steps if not (op.kind == "sync" and op.path in ours)]


def _row_before_bytes(steps: Sequence[Op], archive: str) -> list[Op]:
    """Put each certificate's steps between the commit of its row and its line in the log."""
    # Folders stay: two certificates of a month need the same ones, whichever made them.
    puts = {name: [at for at in put if steps[at].kind != "mkdir"] for name, put in _puts(steps)}
    moved = {at for put in puts.values() for at in put}
    order = []
    for at, op in enumerate(steps):
        if op.kind == "logged" and STORED in op.data:
            names = [name for name in puts if name.encode() in op.data]
            order += [steps[one] for name in names for one in puts.pop(name)]
        if at not in moved:
            order.append(op)
    return order


def _in_place(steps: Sequence[Op], archive: str) -> list[Op]:
    """Write each certificate under its final name, where it got that by a link."""
    puts = dict(_puts(steps))
    removed = {at for put in puts.values() for at in put if steps[at].path.endswith(_PART)}
    links = {steps[at].target: put for put in puts.values() for at in put if steps[at].target}
    order = []
    for at, op in enumerate(steps):
        if at not in removed:
            order.append(op)
        elif op.kind == "link":
            of_file = [steps[one] for one in links[op.target] if steps[one].path == op.path]
            written = [one for one in of_file if one.kind in {"create", "write", "sync"}]
            order += [replace(one, path=op.target) for one in written]
    return order


def _synchronous_normal(steps: Sequence[Op], archive: str) -> list[Op]:
    """Sync the write-ahead log where SQLite does at NORMAL: its header, and before a checkpoint."""
    ledger = [at for at, op in enumerate(steps) if op.path.removesuffix(_WAL).endswith(".db")]
    left_out = set()
    for before, at, after in zip(ledger, ledger[1:], [*ledger[2:], None], strict=False):
        if steps[at].kind != "sync" or not steps[at].path.endswith(_WAL):
            continue
        header = steps[before].kind == "write" and steps[before].offset == 0
        checkpoint = after is not None and not steps[after].path.endswith(_WAL)
        if not header and not checkpoint:
            left_out.add(at)
    return [op for at, op in enumerate(steps) if at not in left_out]


def _puts(steps: Sequence[Op]) -> Iterator[tuple[str, list[int]]]:
    """Yield order id and numbers of the steps that stored each certificate, all of one thread."""
    for link, op in enumerate(steps):
        if op.kind != "link" or not op.path.endswith(_PART):
            continue
        own = [at for at, one in enumerate(steps) if one.thread == op.thread]
        first = max(at for at in own if at < link and steps[at].kind == "create")
        last = min(at for at in own if at > link and steps[at].kind == "unlink")
        yield PurePath(op.target).stem, [at for at in own if first <= at <= last]


VARIANTS: Mapping[str, Variant] = {
    "full": Variant("the program as it is", _as_it_is, ""),
    "no-file-fsync": Variant("the temporary is not synced", _no_file_sync, "torn file"),
    "no-folder-fsync": Variant("no folder is synced", _no_folder_sync, "row without file"),
    "row-first": Variant("the row before the bytes", _row_before_bytes, "row without file"),
    "in-place": Variant("written under the final name", _in_place, "torn file"),
    "synchronous-normal": Variant("commits are not synced", _synchronous_normal, "acknowledged"),
}


def apply(variant: Variant, steps: Sequence[Op], archive: str) -> list[Op]:
    """Return the steps as a variant has them. ``ValueError`` when a weaker one changes nothing."""
    changed = variant.change(steps, archive)
    if changed != list(steps):
        return renumbered(changed)
    if variant.breaks:
        raise ValueError(f"nothing to leave out for: {variant.meaning}")
    return changed
