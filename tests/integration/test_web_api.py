"""The API: the token, the listing and its pages, one order, tracking, retrying."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harvester.sandbox import Sandbox
from tests.integration.web_service import AUTHORIZED, TOKEN, Service, serving

PATHS = ("/v1/orders", "/v1/orders/x", "/v1/orders/x/certificate", "/v1/openapi.json", "/v1/zzz")


async def known(service: Service, count: int) -> None:
    async def are_known() -> bool:
        return len((await service.json("/v1/orders?limit=500"))["orders"]) == count

    await service.until(are_known)


async def test_without_the_token_nothing_is_said(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.create_order("paid", hold=True)
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \xe9\u20ac"},
    )
    async with serving(sandbox, tmp_path) as service:
        answers = set()
        for path in PATHS:
            for headers in wrong:
                status, shown, body = await service.get(path, headers=headers)
                assert (status, shown["WWW-Authenticate"]) == (401, "Bearer")
                answers.add(body)
        status, _, _ = await service.ask(
            "POST", "/v1/orders", headers={}, json={"references": ["x"]}
        )
        assert status == 401
        assert len(answers) == 1


async def test_without_a_configured_token_the_api_is_closed_and_says_so(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with serving(sandbox, tmp_path, token=None) as service:
        for path in PATHS:
            status, headers, body = await service.get(path)
            assert (status, headers["Content-Type"]) == (403, "application/problem+json")
            assert "no token is configured" in json.loads(body)["detail"]
        for path in ("/healthz", "/metrics"):
            assert (await service.get(path))[0] == 200


async def test_a_token_that_was_changed_in_its_file_is_the_one_that_counts(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    file.chmod(0o600)
    async with serving(sandbox, tmp_path, token=None, token_file=file) as service:
        assert (await service.get("/v1/orders", headers={"Authorization": "Bearer first"}))[
            0
        ] == 200
        file.write_text("second")
        assert (await service.get("/v1/orders", headers={"Authorization": "Bearer first"}))[
            0
        ] == 401
        assert (await service.get("/v1/orders", headers={"Authorization": "bearer second"}))[
            0
        ] == 200
        file.unlink()
        status, _, body = await service.get(
            "/v1/orders", headers={"Authorization": "Bearer second"}
        )
        assert (status, json.loads(body)["detail"]) == (503, "the configured token cannot be read")


async def test_the_pages_of_a_listing_hold_every_order_once_newest_first(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    for number in range(7):
        sandbox.create_order("paid", hold=True, idempotency_key=f"INV-{number}")
        other = sandbox.accounts[1].id
        sandbox.create_order("paid", hold=True, account_id=other, idempotency_key=f"INV-{number}")
    async with serving(sandbox, tmp_path) as service:
        await known(service, 14)
        await _put_at_one_instant(service)
        whole = (await service.json("/v1/orders"))["orders"]
        for limit in (1, 3, 7, 14):
            paged, after = [], ""
            while True:
                page = await service.json(f"/v1/orders?limit={limit}{after}")
                assert len(page["orders"]) <= limit
                paged += page["orders"]
                if page["next"] is None:
                    break
                after = f"&after={page['next']}"
            assert [row["id"] for row in paged] == [row["id"] for row in whole]
        first = await service.json("/v1/orders?idempotency_key=INV-3&limit=1")
        second = await service.json(f"/v1/orders?idempotency_key=INV-3&after={first['next']}")
        assert {row["account_id"] for row in first["orders"] + second["orders"]} == {
            account.id for account in sandbox.accounts
        }
        assert second["next"] is None


async def _put_at_one_instant(service: Service) -> None:
    """Give half of the orders one creation date: what a cursor must not stumble over."""
    rows = (await service.json("/v1/orders"))["orders"]
    chosen = ", ".join(f"'{row['id']}'" for row in rows[::2])

    async with service.app.database.transaction() as tx:
        await tx.exec_driver_sql(
            f"UPDATE orders SET created_at = 1700000000000000 WHERE id IN ({chosen})"
        )


async def test_the_filters_are_those_of_the_command(sandbox: Sandbox, tmp_path: Path) -> None:
    paid = sandbox.create_order("paid", hold=True)
    done = sandbox.create_order("complete", hold=True, account_id=sandbox.accounts[1].id)
    async with serving(sandbox, tmp_path) as service:
        await service.stored(1)
        rows = {row["id"]: row for row in (await service.json("/v1/orders"))["orders"]}
        created = rows[done.id]["created_at"]
        for query, wanted in (
            ("status=paid", {paid.id}),
            ("status=nonsense", set()),
            ("certificate=stored", {done.id}),
            ("certificate=none", {paid.id}),
            (f"account_id={sandbox.accounts[1].id}", {done.id}),
            ("since=2100-01-01", set()),
            ("until=2100-01-01&since=1999-12-31", {paid.id, done.id}),
            (f"until={created}&status=complete", set()),
            (f"since={created}&status=complete", {done.id}),
        ):
            found = (await service.json(f"/v1/orders?{query}"))["orders"]
            assert {row["id"] for row in found} == wanted, query


@pytest.mark.parametrize(
    "query",
    [
        "account=x",
        "account_id=../etc",
        "limit=0",
        "limit=501",
        "limit=ten",
        "after=nonsense",
        "after=99999999999999999999.a.b",
        "certificate=maybe",
        "since=yesterday",
        "since=2026-13-01",
        "since=2026-01-01T00:00:00+02:00",
        "status=",
        "status=paid&status=placed",
    ],
)
async def test_a_parameter_that_makes_no_sense_is_refused(
    sandbox: Sandbox, tmp_path: Path, query: str
) -> None:
    async with serving(sandbox, tmp_path) as service:
        status, headers, body = await service.get(f"/v1/orders?{query}")
        assert (status, headers["Content-Type"]) == (400, "application/problem+json")
        assert json.loads(body)["detail"]


async def test_an_order_of_two_accounts_has_to_be_asked_for_with_its_account(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    order = sandbox.create_order("paid", hold=True)
    async with serving(sandbox, tmp_path) as service:
        await known(service, 1)
        await _copy_to_the_other_account(service, order.id, sandbox.accounts[1].id)
        status, _, body = await service.get(f"/v1/orders/{order.id}")
        assert status == 409
        assert json.loads(body)["accounts"] == sorted(one.id for one in sandbox.accounts)
        for account in sandbox.accounts:
            found = await service.json(f"/v1/orders/{order.id}?account_id={account.id}")
            assert (found["id"], found["account_id"]) == (order.id, account.id)


async def _copy_to_the_other_account(service: Service, order_id: str, account_id: str) -> None:
    async with service.app.database.transaction() as tx:
        ask = tx.exec_driver_sql
        columns = [row.name for row in await ask("PRAGMA table_info(orders)")]
        kept = ", ".join(column for column in columns if column not in {"key", "account_key"})
        account_key = f"(SELECT key FROM accounts WHERE id = '{account_id}')"
        await ask(
            f"INSERT INTO orders (account_key, {kept}) SELECT {account_key}, {kept} "
            f"FROM orders WHERE id = '{order_id}'"
        )
        newest = "(SELECT max(key) FROM orders)"
        await ask(f"INSERT INTO order_documents SELECT {newest}, document FROM order_documents")


async def test_an_order_is_shown_as_the_command_shows_it(sandbox: Sandbox, tmp_path: Path) -> None:
    order = sandbox.create_order("complete", hold=True, idempotency_key="INV-1")
    async with serving(sandbox, tmp_path) as service:
        await service.stored(1)
        shown = await service.json(f"/v1/orders/{order.id}")
        assert [step["to"] for step in shown["transitions"]] == ["complete"]
        assert shown["certificates"][0]["sha256"] == shown["certificate"]["sha256"]
        # An idempotency key is no id.
        assert (await service.get("/v1/orders/INV-1"))[0] == 404
        assert (await service.get("/v1/orders/..%2f..%2fetc"))[0] == 404


async def test_an_order_is_tracked_once_it_is_answered(sandbox: Sandbox, tmp_path: Path) -> None:
    async with serving(sandbox, tmp_path, sweep_interval="1h") as service:
        order = sandbox.create_order("paid", hold=True, idempotency_key="INV-9")
        for _ in range(2):
            answer = await service.json(
                "/v1/orders", "POST", json={"references": ["INV-9", "none"], "by_key": True}
            )
            good, bad = answer["tracked"]
            assert (good["order_id"], good["status"], good["problem"]) == (order.id, "paid", None)
            assert bad["order_id"] is None
            assert "no such order" in bad["problem"]
        shown = await service.json(f"/v1/orders/{order.id}")
        assert [step["source"] for step in shown["transitions"]] == ["track"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "{",
        "{}",
        '{"references": []}',
        '{"references": "x"}',
        '{"references": [""]}',
        '{"references": [1]}',
        '{"references": ["x"], "by_key": "yes"}',
        '{"references": ["x"], "account_id": "../x"}',
        '{"references": ["x"], "other": 1}',
        json.dumps({"references": ["x"] * 101}),
    ],
)
async def test_a_body_that_makes_no_sense_is_refused(
    sandbox: Sandbox, tmp_path: Path, body: str
) -> None:
    async with serving(sandbox, tmp_path) as service:
        headers = AUTHORIZED | {"Content-Type": "application/json"}
        status, _, answer = await service.ask("POST", "/v1/orders", headers=headers, data=body)
        assert status == 400, answer
        headers["Content-Type"] = "text/plain"
        status, _, _ = await service.ask("POST", "/v1/orders", headers=headers, data=body)
        assert status == 415


async def test_an_account_the_key_does_not_reach_is_not_found(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    async with serving(sandbox, tmp_path) as service:
        body = {"references": ["x"], "account_id": "nobody"}
        status, _, answer = await service.ask("POST", "/v1/orders", json=body)
        assert status == 404, answer


async def test_a_retry_makes_a_missing_certificate_due_and_nothing_else(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.faults.add("certificate-missing")
    missing = sandbox.create_order("complete", hold=True)
    paid = sandbox.create_order("paid", hold=True)
    async with serving(sandbox, tmp_path, sweep_interval="1h") as service:

        async def was_tried() -> bool:
            shown = await service.json(f"/v1/orders/{missing.id}")
            return "404" in str(shown.get("waits_for"))

        await service.until(was_tried)
        assert (await service.json(f"/v1/orders/{paid.id}/retry", "POST"))["due"] == []
        assert (await service.ask("POST", "/v1/orders/nobody/retry"))[0] == 404
        sandbox.faults.remove("certificate-missing")
        due = (await service.json(f"/v1/orders/{missing.id}/retry", "POST"))["due"]
        assert [one["order_id"] for one in due] == [missing.id]
        await service.stored(1)  # long before the retry it had planned by itself
