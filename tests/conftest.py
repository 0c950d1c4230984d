"""Every test ends with a search for secrets in all that it wrote and printed."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests import canaries


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the campaigns: what takes minutes should not be the last to begin."""
    items.sort(key=lambda item: "campaigns" not in item.path.parts)


@pytest.fixture(autouse=True, scope="session")
def _a_password_in_the_environment() -> Generator[None]:
    """Have a password where every program finds it, for whatever shows its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", canaries.DATABASE_PASSWORD)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test, once all of it is over, that let a secret out."""
    report = yield
    if report.when != "teardown":
        return report
    texts = [*canaries.take_heard(), *(text for _, text in report.sections)]
    if report.passed and _name(item) not in canaries.SHOWN_BY:
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        found = list(canaries.shown(folder, texts))
        if found:
            report.outcome = "failed"
            report.longrepr = "\n".join(found)
    return report


def _name(item: pytest.Item) -> str:
    return f"{item.nodeid.partition('[')[0].removeprefix('tests/')}"
