"""The sources of this release, as a clone holds them, and those of a next one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from proofs.steps import REPOSITORY, fail

_SOURCES = (
    *("harvester", "migrations", "deploy"),
    *("pyproject.toml", "README.md", "LICENSE", "config.example.toml"),
)

_MIGRATION = '''\
"""A column more, for the rows that are there too."""

import sqlalchemy as sa
from alembic import op

revision = "{following}"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("orders", sa.Column("next", sa.Text, server_default="{following}"))
'''


def copy_release(folder: Path) -> None:
    """Copy what is installed from into a folder."""
    for name in _SOURCES:
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)


def write_next_release(folder: Path) -> str:
    """Write the sources of a next release, with a step of the schema more; return its number."""
    copy_release(folder)
    package = folder / "harvester" / "__init__.py"
    before = package.read_text()
    after = re.sub(r'__version__ = "(.*)"', r'__version__ = "\1.post1"', before)
    if after == before:
        fail(f"{package} names no version")
    package.write_text(after)
    chain = folder / "migrations" / "versions"
    head = max(file.name.partition("_")[0] for file in chain.glob("[0-9]*_*.py"))
    following = f"{int(head) + 1:04}"
    migration = chain / f"{following}_next.py"
    migration.write_text(_MIGRATION.format(head=head, following=following))
    return following
