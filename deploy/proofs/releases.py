"""The sources of this release, as a clone holds them, and those of a release after it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from proofs.steps import REPOSITORY, fail

_SOURCES = (
    *("harvester", "migrations", "deploy"),
    *("pyproject.toml", "README.md", "LICENSE", "config.example.toml"),
)


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
    package.write_text(
        re.sub(r'__version__ = "(.*)"', r'__version__ = "\1.post1"', package.read_text())
    )
    chain = folder / "harvester" / "ledger" / "migrate.py"
    text = chain.read_text()
    match = re.search(r'HEAD = "(\d+)"', text)
    if match is None:
        fail("migrate.py names no HEAD")
    head = match[1]
    following = f"{int(head) + 1:04}"
    text = text.replace(f'HEAD = "{head}"', f'HEAD = "{following}"')
    chain.write_text(re.sub(r"(REVISIONS = \([^)]*)\)", rf'\1, "{following}")', text))
    migration = folder / "migrations" / "versions" / f"{following}_next.py"
    migration.write_text(
        f'revision = "{following}"\ndown_revision = "{head}"\n'
        "branch_labels = depends_on = None\n\n\ndef upgrade() -> None:\n    pass\n"
    )
    return following
