"""The API's description is true: of its paths, and of everything schemathesis can think of."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode

from harvester.sandbox import Sandbox
from tests.integration.web_service import TOKEN, Service, serving

DESCRIPTION: dict[str, Any] = json.loads(
    files("harvester.web").joinpath("openapi.json").read_text("utf-8")
)
EXAMPLES = 40
"""For each operation; with all checks of schemathesis on each."""

OPERATIONS = [
    (path, method.upper())
    for path, item in DESCRIPTION["paths"].items()
    for method in item
    if method in {"get", "post"}
]


@pytest.fixture
async def service(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[Service]:
    for status in ("paid", "complete", "retiring", "cancelled"):
        sandbox.create_order(status, hold=True, idempotency_key=f"KEY-{status}")
    async with serving(sandbox, tmp_path, sweep_interval="1h") as one:
        await one.stored(1)
        yield one


async def test_what_is_described_is_what_is_served(service: Service) -> None:
    served = await service.json("/v1/openapi.json")
    assert served == DESCRIPTION
    for path, method in OPERATIONS:
        filled = path.replace("{id}", "nobody")
        status, _, _ = await service.ask(method, f"/v1{filled}")
        assert status != 405, path
        status, headers, _ = await service.ask("DELETE", f"/v1{filled}")
        assert status == 405
        assert set(headers["Allow"].split(",")) - {"HEAD"} == {
            described for other, described in OPERATIONS if other == path
        }


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
async def test_schemathesis_finds_nothing(
    service: Service, path: str, method: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(DESCRIPTION)
    schema.config.update(base_url=f"http://127.0.0.1:{service.port}/v1")
    # A number that is well formed may be one that is kept no more, or was never given.
    schema.config.checks.positive_data_acceptance.expected_statuses = ["2xx", "404", "409", "410"]
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and not (
        operation.path_parameters or operation.query or operation.body
    ):
        return  # there is nothing to get wrong
    orders = (await service.json("/v1/orders"))["orders"]
    ids = itertools.cycle([None, *(order["id"] for order in orders)])

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def examples(case: Case[Any]) -> None:
        order_id = next(ids)
        if order_id is not None and "id" in case.path_parameters and mode.is_positive:
            case.path_parameters["id"] = order_id  # by chance no order would ever be met
        if mode.is_positive:
            (case.query or {}).pop("wait", None)  # nothing happens here that is worth it
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})

    await asyncio.to_thread(examples)
