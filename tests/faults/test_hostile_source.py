"""What the source may not hold: code made from data, SQL made from text, loose dependencies."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.faults.catalogue import fault

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "harvester").rglob("*.py"), *(ROOT / "migrations").rglob("*.py")])

FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "tempfile.mktemp",
}
FORBIDDEN_MODULES = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "telnetlib",
}
STATEMENT = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|ATTACH|PRAGMA)\b")
HANDLERS = {"super()", "self._backlog"}
"""What formats a record of the log, by a method of logging's."""

RUNS_SQL = {"execute", "executemany", "executescript", "exec_driver_sql", "text"}


def findings(source: str) -> Iterator[str]:
    """Yield a line for everything in a source that makes code, objects or SQL out of data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        for name in names:
            if name.partition(".")[0] in FORBIDDEN_MODULES:
                yield f"imports {name}"
        if isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in FORBIDDEN_CALLS:
        yield f"{node.lineno}: calls {name}"
    match node.func:
        # A template that is not written here could read attributes of what it is given.
        case ast.Attribute(value=template, attr="format" | "format_map"):
            if not (_is_constant(template) or ast.unparse(template) in HANDLERS):
                yield f"{node.lineno}: formats with a template that is data"
    for keyword in node.keywords:
        if keyword.arg == "shell" and not _is(keyword.value, False):
            yield f"{node.lineno}: runs a shell"
    if name.rpartition(".")[2] in RUNS_SQL and node.args and _is_made(node.args[0]):
        yield f"{node.lineno}: runs a statement made from text"


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id.isupper())


def _is_made(node: ast.expr) -> bool:
    """Tell whether an expression puts SQL together: f-string, %, + or format."""
    text = "".join(
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )
    made = any(
        isinstance(part, ast.FormattedValue)
        or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod | ast.Add))
        or (isinstance(part, ast.Attribute) and part.attr in {"format", "join", "replace"})
        for part in ast.walk(node)
    )
    return made and STATEMENT.search(text.upper()) is not None


ALLOWED = {
    "harvester/ledger/database.py": "PRAGMA takes no parameters; the value is our own",
}
"""Files that put a statement together, and why that is safe."""


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
@fault("X14", "X15")
def test_no_source_makes_code_or_sql_out_of_data(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = list(findings(path.read_text("utf-8")))
    if name in ALLOWED:
        found = [one for one in found if not one.endswith("made from text")]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml\nyaml.load(x)",
        "eval(x)",
        "exec(x)",
        "import os\nos.system(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "template.format(order=order)",
        "c.execute(f\"SELECT * FROM orders WHERE id = '{id}'\")",
        "c.execute(\"DELETE FROM orders WHERE id = '%s'\" % id)",
        'c.execute("UPDATE orders SET status = " + status)',
        'c.execute(text("SELECT {}".format(x)))',
    ],
)
@fault("X14", "X15")
def test_the_search_of_the_source_finds_what_it_is_for(source: str) -> None:
    assert list(findings(source))


def _closure(names: list[str]) -> set[str]:
    """Return the distributions that are installed with these, themselves included."""
    found: set[str] = set()
    pending = [Requirement(name) for name in names]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        for text in requires(name) or []:
            below = Requirement(text)
            extras = [{"extra": extra} for extra in ("", *requirement.extras)]
            if below.marker is None or any(below.marker.evaluate(extra) for extra in extras):
                pending.append(below)
    return found


@fault("X16")
def test_every_dependency_of_a_dependency_is_pinned_to_what_was_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ROOT / "deploy/constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert [str(pin) for pin in pins if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []
    assert [str(pin) for pin in pins if pin.url] == []
    pinned = {canonicalize_name(pin.name) for pin in pins}
    assert _closure(project["dependencies"]) - pinned == set()


@fault("X16")
def test_the_project_asks_for_nothing_from_an_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    assert [one for group in groups for one in group if Requirement(one).url] == []
