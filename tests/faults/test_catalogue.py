"""The catalogue and the tests hold each other to it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.faults.catalogue import PAGE, page_with_catalogue, read_catalogue

HERE = Path(__file__).parent
IDS = {"N": 26, "A": 28, "P": 14, "F": 21, "D": 23, "S": 18, "C": 9, "X": 20, "W": 22}
"""How many rows each group has; a row is only ever added."""

ROWS = {row.id: row for rows in read_catalogue().values() for row in rows}


def marked_tests() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every test below this folder with the ids its ``@fault`` names."""
    for path in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("test_"):
                ids = [
                    argument.value
                    for mark in node.decorator_list
                    if isinstance(mark, ast.Call)
                    and isinstance(mark.func, ast.Name)
                    and mark.func.id == "fault"
                    for argument in mark.args
                    if isinstance(argument, ast.Constant)
                ]
                name = f"{path.relative_to(HERE).as_posix()}::{node.name}"
                yield name, tuple(str(one) for one in ids)


def test_every_id_of_every_group_has_a_row() -> None:
    assert set(ROWS) == {
        f"{group}{number}" for group, last in IDS.items() for number in range(1, last + 1)
    }


def test_every_row_names_just_the_tests_that_name_it() -> None:
    shown = defaultdict(set)
    for name, ids in marked_tests():
        for one in ids:
            shown[one].add(name)
    assert {row.id: set(row.tests) for row in ROWS.values() if row.tests} == dict(shown)


def test_every_row_has_a_test_or_names_what_it_waits_for() -> None:
    assert [row.id for row in ROWS.values() if bool(row.tests) == bool(row.waits_for)] == []


def test_every_test_of_a_fault_names_its_rows() -> None:
    about_the_machinery = ("test_catalogue.py", "test_invariants.py", "campaigns/")
    nameless = [name for name, ids in marked_tests() if not ids]
    assert [name for name in nameless if not name.startswith(about_the_machinery)] == []


def test_the_page_shows_the_catalogue_as_it_stands() -> None:
    page = PAGE.read_text("utf-8")
    assert page == page_with_catalogue(page), "run python -m tests.faults.catalogue"
