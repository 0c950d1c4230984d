"""The catalogue of faults: what can go wrong, what must happen then, and which test shows it.

The tables lie beside this file, one a group; a test says with :func:`fault` which of them it
shows, and ``test_catalogue.py`` holds the two against each other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: its id, what goes wrong, what must happen, and the tests that show it.

    ``tests`` are ``file::function`` below ``tests/faults``; a row without any says in
    ``waits_for`` which part of the program has to exist first.
    """

    id: str
    fault: str
    expectation: str
    tests: tuple[str, ...]
    waits_for: str | None = None


def read_catalogue() -> dict[str, list[Fault]]:
    """Return the rows by the title of their group, as they stand in the tables."""
    groups = {}
    for path in sorted(FOLDER.glob("*.toml")):
        table = tomllib.loads(path.read_text("utf-8"))
        groups[table["title"]] = [
            Fault(**{**row, "tests": tuple(row.get("tests", ()))}) for row in table["faults"]
        ]
    return groups


def fault(*ids: str) -> pytest.MarkDecorator:
    """Mark a test as the one that shows these faults."""
    return pytest.mark.fault(*ids)


PAGE = FOLDER.parent / "README.md"
_BEGIN, _END = "<!-- catalogue -->\n", "<!-- end of the catalogue -->\n"


def page_with_catalogue(page: str) -> str:
    """Return the page about the faults with the tables as they stand between its marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + "".join(_lines()) + _END + after


def _lines() -> Iterator[str]:
    for title, rows in read_catalogue().items():
        yield f"\n### {title}\n\n| id | fault | what must happen | shown by |\n|---|---|---|---|\n"
        for row in sorted(rows, key=lambda row: int(row.id[1:])):
            shown = "<br>".join(f"`{test}`" for test in row.tests) or f"waits for {row.waits_for}"
            cells = (row.id, row.fault, row.expectation, shown)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    yield "\n"
