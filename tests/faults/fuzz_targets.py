"""What takes bytes from outside, one function a door: it returns, or it has a defect.

Each target takes any bytes and raises only what no caller expects: the documented errors of the
tree are caught here, and what gets through is held against what it must be. Shared by the tests in
the suite (``test_hostile_bytes.py``) and by the long run (``python -m tests.faults.fuzz``).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import SecretStr

from harvester import logs
from harvester.archive.pdf import check_pdf
from harvester.config.load import load
from harvester.config.secrets import Secret
from harvester.config.types import parse_duration
from harvester.domain.certificate_names import QUARANTINE, CertificateNames, split_path
from harvester.domain.errors import (
    CertificateRejected,
    ConfigurationError,
    LuneError,
)
from harvester.domain.orders import Account, Order, OrderPage, is_identifier
from harvester.lune import ClientOptions, Deadlines, LuneClient, RateLimiter
from harvester.lune.parsing import (
    PayloadError,
    parse_account,
    parse_account_page,
    parse_order,
    parse_order_page,
    parse_quote,
)
from harvester.lune.retry import parse_retry_after
from tests.integration.raw_server import Naps, raw_server

Target = Callable[[bytes], None]

ACCOUNT = Account("own", "own", "live", "account", "GBP", None, "org", is_default=True)
KEY = "canary-key-6e02d7"
SOME_DAY = datetime(2026, 10, 10, tzinfo=UTC)
_LONGEST_MESSAGE = 2000


def plain(text: str) -> None:
    """Hold a message to be one short line that shows no key."""
    assert text.isprintable(), f"a message breaks its line: {text!a}"
    assert len(text) <= _LONGEST_MESSAGE, f"a message of {len(text)} characters"
    assert KEY not in text, "a message shows the key"


def sound(order: Order) -> None:
    """Hold an order to be fit for a path, a line and the ledger."""
    assert is_identifier(order.id)
    plain(order.status)
    assert order.created_at.tzinfo is not None
    assert "email" not in order.document
    for value in (dict(order.document), dict(order.metadata), order.idempotency_key):
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    names = CertificateNames("{account_id}/{created:%Y-%m}/{order_id}")
    below(names.path("a", order.id, order.created_at, 1))


def below(path: str) -> None:
    """Hold a path to lie below the archive's root and outside of what is the archive's own."""
    folders, name = split_path(path)
    assert os.path.normpath(path) == path
    assert not path.startswith(("/", ".")), path
    assert folders[:1] != (QUARANTINE,)
    assert name.endswith(".pdf")


@contextlib.contextmanager
def expecting(*kinds: type[Exception]) -> Iterator[None]:
    """Let the documented errors pass, provided that their message is one line."""
    try:
        yield
    except kinds as error:
        for problem in getattr(error, "problems", [str(error)]):
            plain(problem)


def order(data: bytes) -> None:
    """An answer for one order."""
    with expecting(PayloadError):
        sound(parse_order(data))


def page(data: bytes) -> None:
    """A page of orders."""
    with expecting(PayloadError):
        judge_page(parse_order_page(data))


def judge_page(read: OrderPage) -> None:
    """Hold everything in a page to its rules."""
    for one in read.orders:
        sound(one)
    for rejected in read.rejected:
        plain(rejected.reference)
        plain(rejected.reason)
        rejected.document.encode()
    if read.next_cursor is not None:
        plain(read.next_cursor)


def accounts(data: bytes) -> None:
    """One account and a page of them."""
    with expecting(PayloadError):
        assert is_identifier(parse_account(data).id)
    with expecting(PayloadError):
        read = parse_account_page(data)
        for reason in read.skipped:
            plain(reason)
        assert all(is_identifier(one.id) for one in read.accounts)


def quote(data: bytes) -> None:
    """A price."""
    with expecting(PayloadError):
        parse_quote(data)


def header(data: bytes) -> None:
    """A ``Retry-After`` header."""
    seconds = parse_retry_after(data.decode("utf-8", "surrogateescape"), time.time())
    assert seconds is None or 0 <= seconds <= 300


def pdf(data: bytes) -> None:
    """A certificate."""
    with expecting(CertificateRejected):
        check_pdf(data, cpu_seconds=1.0)


def layout(data: bytes) -> None:
    """A layout, as an operator or whoever writes his file gives it."""
    with expecting(ConfigurationError):
        # Shortened: the message quotes it whole, and it is the operator's own.
        made = CertificateNames(data[:200].decode("utf-8", "surrogateescape"))
        for version, interim in ((1, False), (2, True), (9_999_999_999, True)):
            below(made.path("a" * 64, "o" * 64, SOME_DAY, version, interim=interim))


def duration(data: bytes) -> None:
    """A duration."""
    with contextlib.suppress(ValueError):
        assert parse_duration(data.decode("utf-8", "surrogateescape")).total_seconds() > 0


def configuration(data: bytes) -> None:
    """A configuration file."""
    with _file(data) as path, expecting(ConfigurationError):
        load(path)


def secret(data: bytes) -> None:
    """A secret's file."""
    with _file(data) as path, expecting(ConfigurationError):
        found = Secret("lune.api_key", SecretStr("unused"), path).read()
        assert found.isascii()
        assert found.isprintable()
        assert " " not in found


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(prefix="harvester-fuzz-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def line(data: bytes) -> None:
    """A value that is logged."""
    text = data.decode("utf-8", "replace")
    for form in ("json", "console"):
        stream = io.StringIO()
        logs.configure("info", form, stream)
        try:
            structlog.get_logger("ours").info("event", value=text, nested={text: [text]})
            logging.getLogger("theirs").warning("said %s", text)
        finally:
            logging.getLogger().handlers.clear()
        lines = stream.getvalue().removesuffix("\n").split("\n")
        assert len(lines) == 2, lines
        assert all(one.replace("\x1b", "").isprintable() for one in lines), lines


class _Leap:
    """A clock that jumps over every wait."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


class _Asked:
    """A client in front of a server that says the bytes of the moment, kept for many of them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = contextlib.AsyncExitStack()
        self._clock = _Leap()
        self._log = io.StringIO()
        self._said = b""
        self._lune: LuneClient | None = None
        logs.configure("debug", "json", self._log)

    def __call__(self, data: bytes) -> None:
        """Have every kind of answer read from the same bytes, and check what was logged."""
        self._said = data
        self._loop.run_until_complete(self._ask())
        for logged in self._log.getvalue().splitlines():
            plain(logged)
            assert json.loads(logged)["event"]
        self._log.seek(0)
        self._log.truncate()

    async def _ask(self) -> None:
        lune = self._lune = self._lune or await self._open()
        with expecting(LuneError):
            sound(await lune.fetch_order(ACCOUNT, "o1"))
        with expecting(LuneError):
            judge_page(await lune.fetch_orders(ACCOUNT))
        with expecting(LuneError):
            body = await lune.fetch_certificate(ACCOUNT, "o1")
            pdf(body.data)
        if lune.key_refused:
            with expecting(LuneError):
                await lune.probe()
            # Whatever was said, a good answer heals it.
            self._said = _WELL
            await lune.probe()

    async def _open(self) -> LuneClient:
        server = await self._stack.enter_async_context(raw_server(self._answer))
        limiter = RateLimiter(1e6, clock=self._clock, sleep=self._clock.sleep)
        options = ClientOptions(
            Deadlines(0.5, 0.5, 1.0, 1.0),
            largest_json=1 << 16,
            largest_certificate=1 << 16,
            sleep=Naps(),
        )
        base = f"http://127.0.0.1:{server.port}/v1"
        return await self._stack.enter_async_context(
            LuneClient(base, lambda: KEY, limiter, options)
        )

    async def _answer(self, _: int, writer: asyncio.StreamWriter) -> None:
        writer.write(self._said)
        await writer.drain()
        writer.close()

    def close(self) -> None:
        """End server, client and loop."""
        logging.getLogger().handlers.clear()
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


_OWN = b'{"id": "own", "name": "own", "type": "live"}'
_WELL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_OWN),
    _OWN,
)


@contextlib.contextmanager
def http() -> Iterator[Target]:
    """Yield a target for the bytes of a whole HTTP answer; one server and client serve all."""
    asked = _Asked()
    try:
        yield asked
    finally:
        asked.close()


TARGETS: dict[str, Target] = {
    "order": order,
    "page": page,
    "accounts": accounts,
    "quote": quote,
    "header": header,
    "pdf": pdf,
    "layout": layout,
    "duration": duration,
    "configuration": configuration,
    "secret": secret,
    "line": line,
}
