"""The tree of errors, as its module draws it."""

from __future__ import annotations

import re

import pytest

from harvester.domain import errors
from harvester.domain.errors import ConfigurationError, HarvesterError, LuneError, ServerFault

DRAWN = re.compile(r"^    (?P<indent>[| ]*)\+-- (?P<name>\w+) +(?P<star>\*?)", re.MULTILINE)


def drawn() -> dict[str, tuple[str, bool]]:
    """Return each error's parent and whether asking again can help, as the docstring says."""
    tree: dict[str, tuple[str, bool]] = {}
    above = {0: "HarvesterError"}
    for line in DRAWN.finditer(errors.__doc__ or ""):
        depth = len(line["indent"]) // 4
        tree[line["name"]] = (above[depth], bool(line["star"]))
        above[depth + 1] = line["name"]
    return tree


def built() -> dict[str, tuple[str, bool]]:
    return {
        name: (thing.__base__.__name__, thing.retryable)
        for name, thing in vars(errors).items()
        if isinstance(thing, type)
        and issubclass(thing, HarvesterError)
        and thing is not HarvesterError
        and thing.__base__ is not None
    }


def test_the_tree_is_as_it_is_drawn() -> None:
    assert drawn() == built()


def test_a_configuration_error_has_a_line_for_each_problem() -> None:
    error = ConfigurationError("one is wrong", "two is wrong")
    assert error.problems == ("one is wrong", "two is wrong")
    assert str(error) == "one is wrong; two is wrong"


def test_an_error_of_lune_names_the_request_and_what_identifies_it_to_support() -> None:
    error = ServerFault(
        "Lune failed", method="GET", path="/v1/orders", status=503, code="down", cf_ray="8f-AMS"
    )
    assert str(error) == "Lune failed (GET /v1/orders, status 503, down, CF-Ray 8f-AMS)"


@pytest.mark.parametrize("absent", [None, ""])
def test_an_error_of_lune_without_an_answer_names_only_the_request(absent: str | None) -> None:
    error = LuneError("no answer", method="GET", path="/v1/orders", code=absent, cf_ray=absent)
    assert str(error) == "no answer (GET /v1/orders)"
