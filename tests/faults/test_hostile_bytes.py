"""Bytes from outside, bent in every way: an answer, a documented error, and nothing else.

The targets are those of the long run, ``python -m tests.faults.fuzz``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harvester.archive.pdf import check_pdf
from harvester.config.load import load
from harvester.config.settings import Settings
from harvester.domain.errors import CertificateRejected, ConfigurationError
from tests.faults import fuzz_targets
from tests.faults.catalogue import fault
from tests.faults.fuzz_seeds import CONFIGURATION, PDFS, dump, inputs, page
from tests.faults.fuzz_seeds import bent as bent_document
from tests.faults.proxy import response, saying
from tests.faults.scene import Scene

SAME_EVERY_TIME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", [name for name in fuzz_targets.TARGETS if name != "pdf"])
@fault("X1", "X2", "X7", "X9")
def test_bent_bytes_are_read_or_refused_in_one_line(name: str) -> None:
    @SAME_EVERY_TIME
    @given(inputs(name))
    def judge(data: bytes) -> None:
        fuzz_targets.TARGETS[name](data)

    judge()


@pytest.fixture
def http() -> Iterator[fuzz_targets.Target]:
    """The real client in front of a server that says what a test wants."""
    with fuzz_targets.http() as target:
        yield target


@SAME_EVERY_TIME
@given(data=inputs("http"))
@fault("X9")
def test_a_bent_http_answer_is_read_or_refused_in_one_line(
    http: fuzz_targets.Target, data: bytes
) -> None:
    http(data)


@pytest.mark.parametrize("shape", PDFS)
@fault("X15")
def test_a_pdf_cut_at_any_byte_is_not_a_whole_pdf(shape: str) -> None:
    whole = PDFS[shape]
    check_pdf(whole)
    for size in range(len(whole.rstrip())):
        with pytest.raises(CertificateRejected):
            check_pdf(whole[:size])


@settings(SAME_EVERY_TIME, max_examples=150)
@given(data=inputs("pdf"))
@fault("X15")
def test_a_bent_pdf_is_whole_or_refused(data: bytes) -> None:
    fuzz_targets.pdf(data)


@fault("X1", "X9")
async def test_no_page_of_bent_orders_ends_a_harvest_or_writes_outside(
    scene: Scene, tmp_path: Path
) -> None:
    @settings(SAME_EVERY_TIME, max_examples=1)
    @given(st.lists(st.lists(bent_document(ORDER_ROW), max_size=4), min_size=12, max_size=12))
    def draw(pages: list[list[dict[str, object]]]) -> None:
        drawn.extend(pages)

    drawn: list[list[dict[str, object]]] = []
    before = {path.name for path in tmp_path.iterdir()}
    await asyncio.to_thread(draw)
    for rows in drawn:
        body = dump({**page(*rows), "has_more": False})
        scene.proxy.script(saying(response(200, body)), "orders")
        await scene.drain()
        scene.proxy.clear()
    assert {path.name for path in tmp_path.iterdir()} - before <= OURS
    assert all(name.endswith(".pdf") for name in scene.home.files())


VARIABLES = [
    f"HARVESTER_{section}__{key}".upper()
    for section, field in Settings.model_fields.items()
    if isinstance(field.annotation, type)
    for key in field.annotation.model_fields
]
ORDER_ROW: dict[str, object] = {
    "id": "abcdefabcdefabcdefabcdefabcdef01",
    "status": "placed",
    "created_at": "2026-01-04T15:00:27.349Z",
    "metadata": {},
    "quantity": "1.5",
    "idempotency_key": None,
    "certificate": None,
}
OURS = {"data", "certificates", "harvester.log"}


@settings(SAME_EVERY_TIME, max_examples=200)
@given(
    variables=st.dictionaries(
        st.sampled_from(VARIABLES),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
        max_size=4,
    )
)
@fault("X2", "X5")
def test_a_bent_environment_is_a_configuration_or_refused_in_plain_lines(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(CONFIGURATION)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HARVESTER_")]:
            patch.delenv(name)
        for name, text in variables.items():
            patch.setenv(name, text)
        try:
            load(path)
        except ConfigurationError as error:
            for problem in error.problems:
                fuzz_targets.plain(problem)
