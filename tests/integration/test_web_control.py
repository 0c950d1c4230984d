"""What commands ask of the daemon: over its local socket only, and what went wrong comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from harvester.domain.errors import (
    AccountRefused,
    HarvesterError,
    KeyTaken,
    LedgerUnavailable,
    RequestRefused,
)
from harvester.domain.purchases import by_value
from harvester.sandbox import Sandbox
from harvester.web.local_socket import NoDaemonError, _as_error, ask_daemon, error_members
from tests.integration.web_service import Service, serving

POSTS = ("purchase", "retry", "repair", "resend")


async def ask(service: Service, method: str, path: str, body: object = None) -> Any:
    """Ask over the local socket, as a command does."""
    ledger = service.app.database.path
    return await asyncio.to_thread(ask_daemon, ledger, method, path, body, timeout=20)


async def test_over_the_address_there_is_no_such_path(sandbox: Sandbox, tmp_path: Path) -> None:
    async with serving(sandbox, tmp_path) as service:
        nowhere = await service.get("/nowhere")
        for headers in ({}, {"Authorization": "Bearer a-token-for-tests"}):
            answer = await service.get("/control/rate", headers=headers)
            assert (answer[0], answer[2]) == (nowhere[0], nowhere[2]) == (404, nowhere[2])
            for path in ("", "/", "/other", "/rate", *(f"/{name}" for name in POSTS)):
                answer = await service.ask("POST", f"/control{path}", headers=headers, json={})
                assert (answer[0], answer[2]) == (404, nowhere[2]), path


async def test_over_the_socket_no_token_is_needed(sandbox: Sandbox, tmp_path: Path) -> None:
    order = sandbox.create_order("paid", hold=True)
    async with serving(sandbox, tmp_path, token=None, sweep_interval="1h") as service:
        tracked = await ask(service, "POST", "/v1/orders", {"references": [order.id]})
        assert [one["order_id"] for one in tracked["tracked"]] == [order.id]
        assert (await ask(service, "GET", "/v1/orders"))["orders"][0]["id"] == order.id
        assert (await ask(service, "GET", "/healthz"))["ok"]
        assert await ask(service, "GET", "/control/rate") == {
            "rate": 2000,
            "current_rate": 2000,
            "pauses": 0,
        }


async def test_a_purchase_is_placed_once_under_its_key(sandbox: Sandbox, tmp_path: Path) -> None:
    async with serving(sandbox, tmp_path, sweep_interval="1h") as service:

        def body(request: object) -> dict[str, object]:
            account = sandbox.accounts[0].id
            return {
                "account_id": account,
                "kind": purchase.kind,
                "request": request,
                "idempotency_key": "K",
            }

        purchase = by_value("5")
        first = await ask(service, "POST", "/control/purchase", body(purchase.request))
        again = await ask(service, "POST", "/control/purchase", body(purchase.request))
        assert (first["existed"], again["existed"]) == (False, True)
        assert [order.id for order in sandbox.orders()] == [first["order_id"]]
        with pytest.raises(KeyTaken, match="used for another purchase"):
            await ask(service, "POST", "/control/purchase", body(by_value("6").request))
        with pytest.raises(AccountRefused):
            await ask(
                service,
                "POST",
                "/control/purchase",
                body(purchase.request) | {"account_id": "nobody"},
            )


async def test_a_body_that_is_not_a_command_s_is_refused_and_changes_nothing(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with serving(sandbox, tmp_path, sweep_interval="1h") as service:
        for name in POSTS:
            with pytest.raises(LedgerUnavailable, match="not a request of ours"):
                await ask(service, "POST", f"/control/{name}", {"other": 1})
            with pytest.raises(LedgerUnavailable, match="not a JSON object"):
                await ask(service, "POST", f"/control/{name}", [])
        odd = {"discrepancies": [{"finding": "odd", "path": "x"}]}
        with pytest.raises(LedgerUnavailable, match="not a request of ours"):
            await ask(service, "POST", "/control/repair", odd)
        assert sandbox.orders() == []


async def test_without_a_daemon_there_is_nobody_to_ask(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with pytest.raises(NoDaemonError):
        ask_daemon(ledger, "GET", "/control/rate", None, timeout=5)


@pytest.mark.parametrize(
    "error",
    [
        KeyTaken("the key 'K' was used for another purchase"),
        LedgerUnavailable("the disk is full"),
        RequestRefused(
            "too little", method="POST", path="/orders", status=400, code="small", cf_ray="8-AMS"
        ),
    ],
)
def test_a_fault_can_be_raised_again_where_it_was_asked_for(error: HarvesterError) -> None:
    members = json.loads(json.dumps({"detail": str(error)} | error_members(error)))
    again = _as_error(members)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
