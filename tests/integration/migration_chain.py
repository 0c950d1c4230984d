"""The chain of migrations with one revision more, as the next release will have it."""

from __future__ import annotations

import shutil
from pathlib import Path

from harvester.ledger import migrate

NEXT = "0002"
_NEXT = """\
import os
import signal

import sqlalchemy as sa
from alembic import op

revision, down_revision = {revision!r}, {head!r}
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("orders", sa.Column("note", sa.Text))
    {then}
"""


def next_chain(folder: Path, then: str = "") -> Path:
    """Make a chain in a new folder, whose newest revision adds a column and does ``then``."""
    chain = shutil.copytree(
        migrate.migrations_folder(), folder, ignore=shutil.ignore_patterns("__pycache__")
    )
    text = _NEXT.format(revision=NEXT, head=migrate.head(), then=then)
    (chain / "versions" / f"{NEXT}_note.py").write_text(text)
    return chain
