"""The API's description is true: of its paths, and of everything schemathesis can think of."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode

from harvester.domain import orders
from harvester.domain.errors import NotFound
from harvester.domain.events import EventType
from harvester.domain.lifecycle import STATUSES
from harvester.sandbox import Sandbox
from harvester.web import changes, parameters
from harvester.web.local_socket import error_members
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


async def test_every_member_that_is_served_is_described(service: Service) -> None:
    rows = (await service.json("/v1/orders"))["orders"]
    for row in rows:
        assert set(row) == set(properties("Order"))
        shown = await service.json(f"/v1/orders/{row['id']}")
        described = properties("OrderDetail")
        assert set(shown) == set(described)
        for name in ("transitions", "certificates", "anomalies"):
            for one in shown[name]:
                assert set(one) == set(described[name]["items"]["properties"])
        if row["certificate"] is not None:
            assert set(row["certificate"]) == set(properties("Certificate"))
    asked = {"references": [rows[0]["id"], "nobody"]}
    for tracked in (await service.json("/v1/orders", "POST", json=asked))["tracked"]:
        assert set(tracked) == set(properties("Tracked"))
    for event in (await service.json("/v1/changes"))["changes"]:
        assert set(event) == set(properties("Event"))
        assert set(event["data"]) <= set(properties("Event")["data"]["properties"])
    for fault in (
        await service.json("/v1/orders/nobody"),
        await service.json("/v1/changes?after=999"),
        await service.json("/v1/orders?limit=0"),
    ):
        assert set(fault) <= set(properties("Problem"))


def properties(schema: str) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIPTION["components"]["schemas"][schema]["properties"]
    return found


def parameter(path: str, name: str) -> dict[str, Any]:
    """Return the schema of a parameter of a path's GET."""
    item = DESCRIPTION["paths"][path]
    (found,) = [
        one["schema"]
        for one in [*item.get("parameters", ()), *item["get"].get("parameters", ())]
        if one["name"] == name
    ]
    return dict(found)


def page(path: str, name: str) -> dict[str, Any]:
    """Return the schema of the list in the answer of a path's GET."""
    answer = DESCRIPTION["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    found: dict[str, Any] = answer["schema"]["properties"][name]
    return found


def test_its_limits_are_those_of_the_code() -> None:
    limit = parameter("/orders", "limit")
    assert (limit["maximum"], limit["default"]) == (parameters.MOST_ORDERS, parameters._ORDERS)
    assert page("/orders", "orders")["maxItems"] == parameters.MOST_ORDERS
    for name in ("status", "idempotency_key"):
        text = parameter("/orders", name)
        assert (text["minLength"], text["maxLength"]) == (1, parameters._LONGEST_TEXT)
    wanted = parameter("/orders/{id}/certificate", "version")
    assert wanted["maximum"] == parameters._LARGEST_VERSION
    limit = parameter("/changes", "limit")
    assert (limit["maximum"], limit["default"]) == (changes.MOST_CHANGES, changes._CHANGES)
    assert page("/changes", "changes")["maxItems"] == changes.MOST_CHANGES
    assert parameter("/changes", "wait")["maximum"] == changes.MOST_SECONDS
    assert parameter("/changes", "after")["maximum"] == changes._LARGEST


def test_its_patterns_are_those_of_the_code() -> None:
    rule = f"^{orders._IDENTIFIER.pattern}$"
    ids = [
        one["schema"]["pattern"]
        for item in DESCRIPTION["paths"].values()
        for operation in (item, *(item[method] for method in ("get", "post") if method in item))
        for one in operation.get("parameters", ())
        if one["name"] in {"id", "account_id"}
    ]
    assert len(ids) == 6
    assert {*ids, properties("Track")["account_id"]["pattern"]} == {rule}
    # A cursor is a date and two ids. Not every number of 17 digits is a date, so those of the
    # next centuries are described.
    pattern = re.compile(parameter("/orders", "after")["pattern"])
    for text in ("0.a.b", f"-{'9' * 16}.a.b", f"{'9' * 16}.{'a' * 64}.{'b' * 64}"):
        assert pattern.search(text)
        assert parameters.cursor_text(parameters._cursor(text)) == text
    for text in ("a.b", f"{'9' * 19}.a.b", f"1.{'a' * 65}.b", "1.a.b.c", "1.a/.b"):
        assert not pattern.search(text)
        with pytest.raises(ValueError, match="take it from next"):
            parameters._cursor(text)


def test_its_body_is_that_of_the_code() -> None:
    read = parameters.TrackRequest.model_json_schema()
    assert properties("Track").keys() == read["properties"].keys()
    track = DESCRIPTION["components"]["schemas"]["Track"]
    assert track["required"] == read["required"]
    assert track["additionalProperties"] == read["additionalProperties"]
    references, by_key, account_id = (
        (properties("Track")[name], read["properties"][name])
        for name in ("references", "by_key", "account_id")
    )
    for name in ("type", "minItems", "maxItems", "items"):
        assert references[0][name] == references[1][name]
    for name in ("type", "default"):
        assert by_key[0][name] == by_key[1][name]
    text, null = account_id[1]["anyOf"]
    assert account_id[0]["type"] == [text["type"], null["type"]]
    assert account_id[0]["default"] is account_id[1]["default"] is None
    # Rust's expressions, which pydantic has, write the end of a text otherwise.
    assert account_id[0]["pattern"] == text["pattern"].removesuffix(r"\z") + "$"


def test_its_words_are_those_of_the_code() -> None:
    states = list(map(str, orders.CertificateState))
    assert parameter("/orders", "certificate")["enum"] == ["none", *states]
    assert properties("Certificate")["state"]["enum"] == states
    kinds = list(map(str, orders.CertificateKind))
    detail, event = properties("OrderDetail"), properties("Event")
    assert detail["certificates"]["items"]["properties"]["kind"]["enum"] == kinds
    assert event["data"]["properties"]["kind"]["enum"] == kinds
    sources = detail["transitions"]["items"]["properties"]["source"]["enum"]
    assert sources == list(map(str, orders.Source))
    assert event["type"]["description"].split(", ")[:-1] == list(map(str, EventType))
    for schema in ("Order", "OrderDetail"):
        told = properties(schema)["status"]["description"].partition(": ")[2]
        assert told.split(", ")[:-1] == list(STATUSES)


def test_its_faults_are_those_of_the_code() -> None:
    fault = NotFound("no such thing", method="GET", path="/orders/x", status=404)
    members = error_members(fault)
    assert members.keys() <= properties("Problem").keys()
    request = properties("Problem")["request"]
    assert members["request"].keys() == request["properties"].keys() == set(request["required"])


def is_sent_as_nothing(value: object) -> bool:
    """Tell whether a query that holds this value is sent without it."""
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and all(map(is_sent_as_nothing, value))


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
    rows = (await service.json("/v1/orders"))["orders"]
    ids = itertools.cycle([None, *(row["id"] for row in rows)])

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
        if any(map(is_sent_as_nothing, (case.query or {}).values())):
            return  # what is meant to be wrong with it is not
        if mode.is_positive:
            (case.query or {}).pop("wait", None)  # nothing happens here that is worth it
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})

    await asyncio.to_thread(examples)
