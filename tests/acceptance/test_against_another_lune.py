"""The installed command against a Lune that was written by other hands than its sandbox."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from tests.acceptance.conftest import House
from tests.acceptance.other_lune import ENDS, Habits, Order, OtherLune, Served

ACCOUNTS = int(os.environ.get("HARVESTER_TEST_ACCOUNTS", "12"))
"""Of 250 orders each; 40 make the ten thousand."""

DAYS = ["received", "placed", "paid", "retiring", "complete"]


def expected(orders: list[Order]) -> dict[str, str]:
    """Return the SHA-256 that each complete order's certificate has to have."""
    complete = (order for order in orders if order.status == "complete")
    return {order.id: hashlib.sha256(order.certificate).hexdigest() for order in complete}


def stored(house: House) -> dict[str, str]:
    """Return what is stored by order id, having seen that file, row and name agree."""
    files = house.certificates()
    rows = house.orders("--certificate", "stored")
    for row in rows.values():
        certificate = row["certificate"]
        path = Path(certificate["path"])
        assert files[str(path.relative_to(house.archive))] == certificate["sha256"]
        assert path.stat().st_size == certificate["size"]
    assert len(files) == len(rows)
    return {order: row["certificate"]["sha256"] for order, row in rows.items()}


def test_thousands_of_orders_are_drained_within_the_budget_of_requests(
    house: House, tell: Callable[[str], None]
) -> None:
    habits = Habits(last_cursor="absent", lists_default_account=False)
    draw = random.Random(7)
    with OtherLune(habits, accounts=ACCOUNTS) as lune:
        for account in lune.live:
            statuses = ["complete"] * 220 + ["cancelled", "failed"] * 2
            statuses += ["unheard_of", *DAYS[:-1], *DAYS[:-1], *draw.choices(DAYS[:-1], k=17)]
            draw.shuffle(statuses)
            lune.add_orders(account, statuses, size=lambda: draw.randrange(2000, 9000))
        orders = list(lune.orders.values())
        house.configure(lune.base_url, lune.key)

        first = house.drain("--report", str(house.said / "report.json"), timeout=600)
        assert (first.code, first.err.count("warning")) == (0, ACCOUNTS)  # the unheard-of status
        certificates = len(lune.asked("/certificate"))
        pages = ACCOUNTS * 3
        budget = pages + certificates + 2 * ACCOUNTS + 4
        report = json.loads((house.said / "report.json").read_text())
        rows = house.orders()
        assert {(order.id, order.status) for order in orders} == {
            (row["id"], row["status"]) for row in rows.values()
        }
        assert (
            len(expected(orders)) == certificates == report["certificates_stored"] == 220 * ACCOUNTS
        )
        assert stored(house) == expected(orders)
        asked = len(lune.seen)
        assert report["requests"] == asked <= budget
        assert {one.status for one in lune.seen} == {200}

        again = time.monotonic()
        second = house.drain()
        assert second.code == 0
        assert "0 certificates stored" in second.out
        later = lune.asked(since=again)
        paths = {one.path for one in later}
        assert paths <= {
            f"/v1/{p}" for p in ("accounts", "accounts/client", "accounts/me", "orders")
        }
        tell(
            f"{len(orders):,} orders: {first.seconds:.1f} s, {asked} requests of {budget}; "
            f"again: {second.seconds:.1f} s, {len(later)} requests"
        )


@pytest.mark.parametrize(
    "habits",
    [Habits(), Habits("ids", "absent", False), Habits("ids", "null", True)],
    ids=["sealed cursors", "ids, last cursor absent", "ids, last cursor null"],
)
def test_every_order_is_recorded_as_it_was_served(house: House, habits: Habits) -> None:
    with OtherLune(habits, accounts=4) as lune:
        for account, count in zip(lune.live, (0, 1, 100, 201), strict=True):
            lune.add_orders(account, ["placed"] * count)
        finer = next(iter(lune.orders.values()))
        finer.oddities = {"created_at": "2026-02-03T04:05:06.123456789+12:45", "quantity": None}
        house.configure(lune.base_url, lune.key)
        assert house.drain().code == 0
        rows = house.orders()
        assert rows.keys() == lune.orders.keys()
        for order in lune.orders.values():
            served, row = order.row("placed"), rows[order.id]
            created_at = datetime.fromisoformat(served["created_at"]).astimezone(UTC)
            assert datetime.fromisoformat(row["created_at"]) == created_at
            assert (row["account_id"], row["certificate"]) == (order.account, None)
            assert row["metadata"] == (served["metadata"] or {})
            for name in ("quantity", "status", "idempotency_key"):
                assert row[name] == served[name]
        # One request for the key's account, one per list of accounts, one per page.
        assert len(lune.seen) == 1 + 2 + 6


def test_the_daemon_records_every_status_that_a_listing_showed(
    house: House, tell: Callable[[str], None]
) -> None:
    draw = random.Random(11)
    with OtherLune(accounts=2) as lune:
        lone = lune.add_orders(lune.live[1], ["paid"] + ["cancelled"] * 250)[0]
        moving = [*lune.add_orders(lune.live[0], draw.choices(DAYS[:3], k=30)), lone]
        house.configure(lune.base_url, lune.key, lune__rate_limit=20)
        daemon = house.start("run")

        def wait_for_sweeps() -> None:
            listings = len(lune.asked("/orders"))
            house.until(lambda: len(lune.asked("/orders")) > listings + 4, "further listings")

        wait_for_sweeps()
        for step in range(3):
            for order in draw.sample(moving[:-1], k=15) + [lone][: step == 1]:
                if order.status not in ENDS:
                    ahead = DAYS[DAYS.index(order.status) + 1 :][:2]
                    order.status = draw.choice([*ahead, *ahead, "cancelled"])
            wait_for_sweeps()
        for order in moving:
            order.status = order.status if order.status in ENDS else "complete"
        house.until(
            lambda: len(lune.asked("/certificate")) == len(expected(moving)), "the certificates"
        )
        wait_for_sweeps()
        daemon.send_signal(signal.SIGTERM)
        ended = house.finish(daemon, timeout=20)

        assert ended.code == 0
        assert stored(house) == expected(moving)
        chains = house.chains()
        assert {order: [to for to, _ in chain] for order, chain in chains.items()} == lune.statuses
        assert {chain[0][1] for chain in chains.values()} == {"sweep"}
        assert {source for chain in chains.values() for _, source in chain} == {"sweep", "check"}
        assert chains[lone.id][-1][1] == "check"  # page 3 is not read for one order
        busiest = lune.busiest_second()
        assert busiest <= 20
        tell(f"daemon: {len(lune.seen)} requests, {busiest} in the busiest second")


@pytest.mark.parametrize(
    "answer", [(401, "unauthorised"), (403, "account_suspended"), (403, "account_scope_incorrect")]
)
def test_a_refused_account_is_named_and_leaves_the_others_alone(
    house: House, answer: tuple[int, str]
) -> None:
    with OtherLune(accounts=4) as lune:
        for account in lune.live:
            lune.add_orders(account, ["complete", "paid"])
        refused = lune.live[2]
        lune.refused[refused] = answer
        house.configure(lune.base_url, lune.key)
        ended = house.drain()
        assert ended.code == 3
        assert refused in ended.err
        others = [order for order in lune.orders.values() if order.account != refused]
        assert house.orders().keys() == {order.id for order in others}
        assert stored(house) == expected(others)
        assert len([one for one in lune.seen if one.account == refused]) == 1

        del lune.refused[refused]
        assert house.drain().code == 0
        assert stored(house) == expected(list(lune.orders.values()))


def test_a_refused_default_account_leaves_the_named_ones_alone(house: House) -> None:
    with OtherLune(accounts=3) as lune:
        named = lune.add_orders(lune.live[1], ["complete", "paid"])
        lune.refused[lune.live[0]] = (403, "account_suspended")
        house.configure(lune.base_url, lune.key, lune__accounts=["default", lune.live[1]])
        ended = house.drain()
        assert ended.code == 3
        assert "account_suspended" in ended.err
        assert house.orders().keys() == {order.id for order in named}
        assert stored(house) == expected(named)


def test_a_key_that_is_revoked_ends_a_drain_with_few_more_requests(house: House) -> None:
    with OtherLune(Habits(chunk_seconds=0.01), accounts=3) as lune:
        lune.add_orders(lune.live[1], ["complete"] * 200)
        house.configure(lune.base_url, lune.key)
        drain = house.start("run", "--drain")
        house.until(lambda: len(lune.asked("/certificate")) > 30, "downloads")
        lune.revoked = True
        ended = house.finish(drain)
        assert ended.code == 77
        assert "key" in ended.err
        # What was in flight, and the one request that tells a refused key from a refused account.
        assert len([one for one in lune.seen if one.status == 401]) <= 9

        asked = len(lune.seen)
        assert house.drain().code == 77
        assert len(lune.seen) == asked + 1
        lune.revoked = False
        assert house.drain().code == 0
        assert stored(house) == expected(list(lune.orders.values()))


def test_a_daemon_outlives_its_key_and_says_so_once(house: House) -> None:
    with OtherLune(accounts=2) as lune:
        lune.add_orders(lune.live[1], ["complete", "paid"])
        house.configure(lune.base_url, lune.key)
        daemon = house.start("run")
        house.until(lambda: len(lune.asked("/orders")) > 4, "sweeps")
        revoked = time.monotonic()
        lune.revoked = True
        house.until(lambda: [one for one in lune.seen if one.status == 401], "a refusal")
        time.sleep(3)  # six sweeps' worth, in which nothing must happen
        assert daemon.poll() is None
        # What was on its way, one to tell the key from an account, and at most one more.
        assert len([one for one in lune.asked(since=revoked) if one.status == 401]) <= 4
        assert not lune.asked(since=revoked + 1.5)
        errors = [line for line in house.output(daemon)[1].splitlines() if '"error"' in line]
        assert len(errors) == 1, errors
        assert "refused" in errors[0]
        daemon.send_signal(signal.SIGTERM)
        assert house.finish(daemon, timeout=20).code == 0


MALFORMED: dict[str, dict[str, object]] = {
    "a number for a status": {"status": 3},
    "no status": {"status": None},
    "a day for an instant": {"created_at": "2026-02-03"},
    "no instant": {"created_at": None},
    "a list for metadata": {"metadata": ["a"]},
    "words for a quantity": {"quantity": "much"},
    "an object for bundles": {"bundles": {}},
    "no id": {"id": None},
    "a number for an id": {"id": 7},
    "an id with slashes": {"id": "../../../escaped"},
    "an absolute id": {"id": "/escaped"},
    "dots": {"id": ".."},
    "a dot": {"id": "."},
    "a hidden id": {"id": ".escaped"},
    "a newline": {"id": 'a\n"level": "error" b'},
    "a NUL": {"id": "a\0b"},
    "300 characters": {"id": "x" * 300},
    "an encoded slash": {"id": "a%2fescaped"},
    "nothing": {"id": ""},
}


KEPT = {"certificates", *(f"ledger.db{end}" for end in ("", "-shm", "-wal", ".lock"))}


def test_malformed_orders_are_rejected_and_leave_no_trace_in_paths(house: House) -> None:
    with OtherLune(accounts=2) as lune:
        bad = lune.add_orders(lune.live[1], ["complete"] * len(MALFORMED))
        good = lune.add_orders(lune.live[1], ["complete"] * 99)
        for order, oddities in zip(bad, MALFORMED.values(), strict=True):
            order.oddities = oddities
        house.configure(lune.base_url, lune.key)
        ended = house.drain()
        assert ended.code == 3
        assert ended.err.count(" rejected: ") == len(MALFORMED)
        for oddities in MALFORMED.values():
            if isinstance(served := oddities.get("id"), str) and served:
                assert ascii(served)[1:-1][:60] in ended.err
        for order in bad:
            assert "id" in order.oddities or order.id in ended.err
        assert house.orders().keys() == {order.id for order in good}
        assert stored(house) == expected(good)
        files = (house.archive / name for name in house.certificates())
        assert {path.stem for path in files} == {order.id for order in good}
        paths = {one.path for one in lune.asked("/certificate")}
        assert paths == {f"/v1/orders/{order.id}/certificate" for order in good}
        assert not [*house.state.parent.parent.rglob("*escaped*"), *Path("/").glob("*escaped*")]
        assert {path.name for path in house.state.iterdir()} <= KEPT

        for order in bad:
            order.oddities = {}
        assert house.drain().code == 0
        assert stored(house) == expected([*good, *bad])


def test_a_certificate_that_is_not_there_is_owed_until_it_is(house: House) -> None:
    with OtherLune() as lune:
        late, other = lune.add_orders(lune.live[0], ["complete", "complete"])
        lune.certificates[late.id] = Served(b"", 404)
        house.configure(lune.base_url, lune.key)
        ended = house.drain()
        assert ended.code == 3
        assert late.id in ended.err
        assert other.id not in ended.err.split("1 missing")[-1].splitlines()[-1]
        owed = house.orders("--certificate", "owed")
        assert owed.keys() == {late.id}
        assert owed[late.id]["certificate"]["state"] == "owed"
        assert stored(house) == expected([other])

        lune.certificates.clear()
        assert house.drain().code == 0
        assert stored(house) == expected([late, other])
        assert len(lune.asked(f"{other.id}/certificate")) == 1


HTML = b"<!doctype html><title>Checking your browser</title>" + b"<p>one moment" * 100


def test_what_is_no_whole_pdf_is_kept_in_quarantine_and_never_stored(house: House) -> None:
    with OtherLune() as lune:
        orders = lune.add_orders(lune.live[0], ["complete"] * 6)
        page, other_page, cut, text, empty, good = orders
        bad = {
            page.id: HTML,
            other_page.id: HTML,
            cut.id: cut.certificate[:-700],
            text.id: b"not a certificate\n" * 40,
            empty.id: b"",
        }
        lune.certificates |= {order: Served(body) for order, body in bad.items()}
        lune.certificates[other_page.id] = Served(HTML, content_type="text/html")
        house.configure(lune.base_url, lune.key)
        ended = house.drain()
        assert ended.code == 3
        assert all(order in ended.err for order in bad)
        assert stored(house) == expected([good])
        assert house.orders("--certificate", "failed").keys() == bad.keys()
        for order, body in bad.items():
            kept = list((house.archive / "quarantine").glob(f"{order}*.bin"))
            assert [path.read_bytes() for path in kept] == [body]
            assert kept[0].with_suffix(".reason.txt").read_text().strip()

        lune.certificates.clear()
        assert house.drain().code == 0
        assert stored(house) == expected(orders)


def test_the_key_is_not_repeated_though_lune_quotes_it(house: House, tmp_path: Path) -> None:
    with OtherLune(accounts=4) as lune:
        lune.add_orders(lune.live[1], ["complete", "paid"])
        lune.quotes_the_key = True
        lune.refused[lune.live[2]] = (403, "account_suspended")
        (tmp_path / "key").touch(0o600)
        (tmp_path / "key").write_text(f"{lune.key}\n")
        house.configure(lune.base_url, lune.key, lune__api_key_file=str(tmp_path / "key"))
        assert house.drain().code == 3
        lune.version = "2031-01-01"
        assert house.drain().code in {3, 78}
        lune.revoked = True
        assert house.drain().code == 77
        # That the key was neither said nor kept is seen at the end of every test.


def test_a_page_that_quotes_the_key_is_not_kept_with_it(house: House) -> None:
    with OtherLune() as lune:
        (order,) = lune.add_orders(lune.live[0], ["complete"])
        lune.certificates[order.id] = Served(HTML + f"<!-- Bearer {lune.key} -->".encode())
        house.configure(lune.base_url, lune.key)
        assert house.drain().code == 3
        assert [*(house.archive / "quarantine").glob(f"{order.id}*.bin")]


def test_a_lost_file_whose_certificate_has_changed_becomes_version_2(house: House) -> None:
    with OtherLune() as lune:
        same, changed = lune.add_orders(lune.live[0], ["complete", "complete"])
        house.configure(lune.base_url, lune.key)
        assert house.drain().code == 0
        first = stored(house)
        for row in house.orders().values():
            Path(row["certificate"]["path"]).unlink()
        changed.edition = 2
        assert house.run("verify").code == 3
        repaired = house.run("verify", "--repair")
        assert stored(house) == expected([same, changed])
        assert stored(house)[changed.id] != first[changed.id]
        (shown,) = house.lines("show", changed.id)
        assert [(one["version"], one["sha256"]) for one in shown["certificates"]] == [
            (1, first[changed.id]),
            (2, expected([changed])[changed.id]),
        ]
        assert shown["certificate"]["path"].endswith(f"/{changed.id}.v2.pdf")
        assert shown["certificate"]["version"] == 2
        # Version 1 cannot be had again: either command may say so, but both the same.
        assert house.run("verify").code == repaired.code


def test_a_redirect_is_not_followed_and_said(house: House) -> None:
    with OtherLune() as lune, OtherLune(seed=2) as elsewhere:
        lune.add_orders(lune.live[0], ["complete"])
        lune.redirect_to = elsewhere.base_url.removesuffix("/v1")
        house.configure(lune.base_url, lune.key)
        ended = house.drain()
        assert ended.code == 3
        assert "redirect" in ended.err
        assert not elsewhere.seen
        assert len(lune.seen) <= 4


def test_a_version_that_lune_does_not_serve_is_said(house: House) -> None:
    with OtherLune() as lune:
        lune.version = "2031-01-01"
        house.configure(lune.base_url, lune.key)
        ended = house.drain()
        assert ended.code in {3, 78}
        assert "api_version_invalid" in ended.err
        assert len(lune.seen) <= 4


@pytest.mark.parametrize("loop", ["one page", "two pages"])
def test_a_listing_in_circles_is_left_and_said(
    house: House, loop: Literal["one page", "two pages"]
) -> None:
    with OtherLune() as lune:
        lune.add_orders(lune.live[0], ["paid"] * 120)
        orders = lune.add_orders(lune.live[1], ["complete"] * 3)
        lune.loop, lune.looping = loop, lune.live[0]
        house.configure(lune.base_url, lune.key)
        ended = house.drain()
        assert ended.code == 3
        assert lune.live[0] in ended.err
        assert len(lune.seen) <= 3 + 6 + 1 + 3
        assert stored(house) == expected(orders)


def test_a_key_of_the_other_mode_is_refused_before_anything_is_asked(house: House) -> None:
    with OtherLune() as lune:
        test_account = lune.keys[lune.test_key]
        lune.add_orders(test_account, ["complete", "paid"])
        lune.add_orders(lune.live[0], ["complete"])
        house.configure(lune.base_url, lune.test_key)
        assert house.drain().code == 0
        rows = house.orders()
        listings = len(lune.asked("/orders"))

        house.configure(lune.base_url, lune.key)
        for command in (["run", "--drain"], ["run"]):
            ended = house.run(*command)
            assert ended.code == 78
            assert "live" in ended.err
            assert "test" in ended.err
        assert len(lune.asked("/orders")) == listings
        assert house.orders() == rows
