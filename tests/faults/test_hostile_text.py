"""Texts that try to be something else: a line of the log, a statement of SQL, a day's work."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import logging
import pkgutil
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
import structlog

import harvester
from harvester import logs
from harvester.archive.pdf import check_pdf
from harvester.config.types import parse_duration
from harvester.domain.certificate_names import CertificateNames
from harvester.domain.errors import HarvesterError
from harvester.domain.orders import is_identifier
from harvester.lune.parsing import parse_account_page, parse_order_page
from harvester.lune.retry import parse_retry_after
from tests.faults.catalogue import fault
from tests.faults.proxy import changed, response, saying
from tests.faults.scene import Scene

FORGED = '{"event": "forged", "level": "info"}'
BREAKS = ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
TERMINAL = ["\x1b[2J\x1b[31m", "\x9b2J", "\x07", "\x08" * 20, "\u202e", "\x00", "\x7f"]
INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE orders; --",
    '"; DELETE FROM transitions; --',
    "1); ATTACH DATABASE 'x.db' AS x; --",
    "%",
    "_",
    "x' UNION SELECT sql FROM sqlite_master --",
    ":status",
    "?",
    "{0}",
    "%s",
    "\\",
]


def texts() -> list[str]:
    return [f"said{odd}{FORGED}" for odd in (*BREAKS, *TERMINAL)]


@fault("X9")
async def test_no_served_text_breaks_or_forges_a_line_of_the_log(scene: Scene) -> None:
    scene.order("placed")
    for number, text in enumerate(texts()):
        body = json.dumps({"error": {"error_code": text, "message": text}}).encode()
        answers = (
            saying(response(400, body)),
            saying(response(503, text.encode(), "text/plain; charset=utf-8")),
            changed(_relabelled(text)),
        )
        scene.proxy.script(answers[number % len(answers)], "orders")
        await scene.drain()
    lines = scene.log_text().split("\n")
    assert len(lines) > len(texts())
    assert {json.loads(line)["event"] for line in lines if line} & {"forged"} == set()


def _relabelled(text: str) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        page = json.loads(body)
        page["data"] = [{**row, "id": text, "status": text} for row in page["data"]]
        return json.dumps(page).encode()

    return change


@pytest.mark.parametrize("form", ["json", "console"])
@fault("X9")
def test_a_logged_value_stays_on_its_line_wherever_it_stands(form: str) -> None:
    stream = io.StringIO()
    logs.configure("debug", form, stream)
    try:
        for text in texts():
            structlog.get_logger("ours").info("event", value=text, nested=[text, {text: text}])
            logging.getLogger("theirs").warning("said %s", text)
            structlog.get_logger("ours").info(text)
    finally:
        logging.getLogger().handlers.clear()
    lines = stream.getvalue().removesuffix("\n").split("\n")
    assert len(lines) == 3 * len(texts())
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in lines]  # the console's own colours
    assert [line for line in plain if not line.isprintable()] == []


@fault("X14")
async def test_a_text_with_sql_in_it_is_a_text(scene: Scene) -> None:
    orders = [
        scene.order(idempotency_key=f"{text} {number}", metadata={text: text})
        for number, text in enumerate(INJECTIONS)
    ]
    await scene.drain()
    for order, text in zip(orders, INJECTIONS, strict=True):
        scene.proxy.script(changed(_with_status(order.id, text)), "order")
    await scene.drain()
    shown = await scene.home.orders()
    assert shown.keys() == {order.id for order in orders}
    assert [shown[order.id]["metadata"] for order in orders] == [{one: one} for one in INJECTIONS]
    with closing(sqlite3.connect(scene.home.ledger)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        [(count,)] = connection.execute("SELECT count(*) FROM orders").fetchall()
    assert count == len(orders)


def _with_status(order_id: str, text: str) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        document = json.loads(body)
        if document["id"] == order_id:
            document["status"] = text
        return json.dumps(document).encode()

    return change


@fault("X14")
async def test_an_argument_with_sql_in_it_finds_nothing(scene: Scene) -> None:
    scene.order("placed", idempotency_key="INV-1")
    await scene.drain()
    text = INJECTIONS[0]
    assert (await scene.command("orders", "--json", "--status", text)).out == ""
    assert (await scene.command("orders", "--account", text)).code == 2
    assert (await scene.command("show", "--", text)).code != 0
    assert len(await scene.home.orders()) == 1


def _patterns() -> Iterator[Any]:
    """Yield every expression of the program, with the ways in which its module looks with it."""
    for found in pkgutil.walk_packages(harvester.__path__, "harvester."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                ways = re.findall(rf"\b{name}\.(\w+)\(", inspect.getsource(module))
                yield pytest.param(value, ways, id=f"{found.name}.{name}")


HEAVY = 1 << 20
_SLOW = 1.0
"""CPU seconds; what is linear takes milliseconds, what is quadratic hours."""

HOSTILE = [
    *(
        "1",
        "a",
        " ",
        "0 ",
        ".",
        "/",
        "{",
        "{created:",
        "%",
        "_id}",
        "-",
        "1.",
        "1h",
        "\t\n",
        "=",
        "}{",
    )
]


def _cpu(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.parametrize(("pattern", "ways"), [*_patterns()])
@fault("X20")
def test_no_expression_takes_more_than_linear_time(
    pattern: re.Pattern[Any], ways: list[str]
) -> None:
    # Long enough that the square shows, short enough that it does not hang the suite.
    size = 20_000
    for piece in HOSTILE:
        text: Any = (piece * size)[:size] + "!"
        text = text.encode() if isinstance(pattern.pattern, bytes) else text
        for way in ways:
            before = (text[:0],) if way == "sub" else ()
            look = partial(getattr(pattern, way), *before, text)
            look = look if way != "finditer" else partial(lambda found: list(found()), look)
            assert (spent := _cpu(look)) < _SLOW, f"{way} of {piece!r} took {spent:.1f} s"


def _id(text: str) -> None:
    is_identifier(text)


def _orders(text: str) -> None:
    row = {"id": "o1", "status": text, "created_at": text, "quantity": text, text: text}
    parse_order_page(json.dumps({"data": [row], "has_more": False}).encode())
    parse_order_page(text.encode())


def _accounts(text: str) -> None:
    parse_account_page(
        json.dumps({"data": [{"id": "a", "type": text}], "has_more": False}).encode()
    )


def _pdf(text: str) -> None:
    check_pdf(b"%PDF-1.4 " + text.encode() + b"startxref " + text[:60].encode() + b"\n9\n%%EOF")


def _log(text: str) -> None:
    logs.configure("debug", "json", io.StringIO())
    logging.getLogger("x").warning("%s", text)
    logging.getLogger().handlers.clear()


ENTRIES: list[Callable[[str], object]] = [
    _id,
    _orders,
    _accounts,
    _pdf,
    _log,
    parse_duration,
    CertificateNames,
    lambda text: parse_retry_after(text, 0.0),
]


@pytest.mark.parametrize(
    "entry", ENTRIES, ids=["id", "orders", "accounts", "pdf", "log", "duration", "layout", "header"]
)
@fault("X20")
def test_a_text_of_a_mebibyte_is_dealt_with_in_no_time(entry: Callable[[str], object]) -> None:
    for piece in HOSTILE:
        text = (piece * HEAVY)[:HEAVY]

        def work(text: str = text) -> None:
            with contextlib.suppress(HarvesterError, ValueError):
                entry(text)

        assert (spent := _cpu(work)) < 2 * _SLOW, f"{piece!r} took {spent:.1f} s"
