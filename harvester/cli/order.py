"""``order`` and ``quote``: buy, and follow what was bought; or only ask for the price."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from harvester.cli.exits import UNFINISHED
from harvester.cli.invocation import Invocation, pass_invocation
from harvester.cli.output import (
    AccountId,
    Duration,
    as_json,
    notice,
    print_json,
    print_table,
    printable,
)

if TYPE_CHECKING:
    from harvester.app import App
    from harvester.config.settings import Settings
    from harvester.domain.orders import Account
    from harvester.domain.purchases import Purchase, Quote

_POLL_SECONDS = 1.0

_TIMEOUT = 600.0
"""Seconds the daemon has to buy: Lune may take its time, and answers may be lost."""

# An amount that begins with a minus is a wrong amount, not an unknown option.
_ARGUMENTS_MAY_BE_NEGATIVE = {"ignore_unknown_options": True}


@click.group("quote", short_help="Ask for a price; buy nothing.")
@pass_invocation
def quote(_invocation: Invocation) -> None:
    """Ask Lune for a price; nothing is bought."""


@click.group("order", short_help="Buy, and follow what was bought.")
@pass_invocation
def order(_invocation: Invocation) -> None:
    """Place an order and follow it to its certificate.

    The quote is shown and a question asked; --yes answers it. An idempotency key buys at most
    once: after a time-out or a crash, run the same command with the same key.
    """


_shared_options = (
    click.option(
        "--account", type=AccountId(), metavar="ID", help="Whose; else the key's own account."
    ),
    click.option(
        "--bundle",
        "bundles",
        metavar="ID[=PERCENT]",
        multiple=True,
        help="Buy from this bundle; all with a percentage, summing to 100, or none.",
    ),
    as_json,
)
_order_options = (
    click.option("--idempotency-key", metavar="KEY", help="Made and shown when not given."),
    click.option("--metadata", metavar="K=V", multiple=True, help="Kept with the order."),
    click.option("--yes", is_flag=True, help="Do not ask."),
    click.option(
        "--wait",
        type=Duration(),
        help="Stay until the certificate is stored; checks every harvest.sweep_interval.",
    ),
)


def _subcommand(
    group: click.Group, name: str, *options: Callable[[Any], Any]
) -> Callable[[Callable[..., None]], click.Command]:
    def decorate(function: Callable[..., None]) -> click.Command:
        decorated: Any = pass_invocation(function)
        for option in reversed(options):
            decorated = option(decorated)
        made = click.command(name, context_settings=_ARGUMENTS_MAY_BE_NEGATIVE)(decorated)
        group.add_command(made)
        return made

    return decorate


@_subcommand(quote, "by-mass", *_shared_options)
@click.argument("amount")
@click.argument("unit")
def _quote_by_mass(invocation: Invocation, amount: str, unit: str, **options: Any) -> None:
    """Price a mass of CO2; UNIT is g, kg or t."""
    from harvester.domain.purchases import by_mass

    _price(invocation, _checked(by_mass, amount, unit, options), options)


@_subcommand(quote, "by-value", *_shared_options)
@click.argument("amount")
def _quote_by_value(invocation: Invocation, amount: str, **options: Any) -> None:
    """Tell what a sum in the account's currency buys."""
    from harvester.domain.purchases import by_value

    _price(invocation, _checked(by_value, amount, options), options)


@_subcommand(order, "by-mass", *_shared_options, *_order_options)
@click.argument("amount")
@click.argument("unit")
def _order_by_mass(invocation: Invocation, amount: str, unit: str, **options: Any) -> None:
    """Buy a mass of CO2; UNIT is g, kg or t."""
    from harvester.domain.purchases import by_mass

    _buy(invocation, _checked(by_mass, amount, unit, options), options)


@_subcommand(order, "by-value", *_shared_options, *_order_options)
@click.argument("amount")
def _order_by_value(invocation: Invocation, amount: str, **options: Any) -> None:
    """Buy for a sum in the account's currency."""
    from harvester.domain.purchases import by_value

    _buy(invocation, _checked(by_value, amount, options), options)


@_subcommand(order, "by-estimate", *_shared_options, *_order_options)
@click.argument("estimate_id")
def _order_by_estimate(invocation: Invocation, estimate_id: str, **options: Any) -> None:
    """Buy what an emission estimate came to; Lune prices it when it is ordered."""
    from harvester.domain.purchases import by_estimate

    _buy(invocation, _checked(by_estimate, estimate_id, options), options)


def _checked(make: Callable[..., Purchase], *parts: Any) -> Purchase:
    """Make the purchase; a broken rule is a usage error, before anything is sent."""
    from harvester.domain.purchases import check_idempotency_key, parse_share

    *arguments, options = parts
    try:
        if options.get("idempotency_key") is not None:
            check_idempotency_key(options["idempotency_key"])
        shares = [parse_share(text) for text in options["bundles"]]
        pairs = [text.partition("=") for text in options.get("metadata", ())]
        if any(not name or not separator for name, separator, _ in pairs):
            raise ValueError("metadata should be written NAME=VALUE")  # noqa: TRY301 - becomes a usage error below
        metadata = {name: value for name, _, value in pairs}
        if len(metadata) < len(pairs):
            raise ValueError("a metadata name should be given once")  # noqa: TRY301 - becomes a usage error below
        return make(*arguments, shares, metadata)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _price(invocation: Invocation, purchase: Purchase, options: dict[str, Any]) -> None:
    invocation.configure_logs("warning")
    _, found = asyncio.run(_ask_price(invocation.settings, purchase, options["account"]))
    if found is None:
        return
    if options["json_output"]:
        print_json(found.document)
    else:
        _print_quote(found)


async def _ask_price(
    settings: Settings, purchase: Purchase, account_id: str | None
) -> tuple[Account, Quote | None]:
    from harvester.app import make_client

    async with make_client(settings) as lune:
        own = await lune.fetch_own_account()
        account = own if account_id is None else await lune.fetch_account(account_id)
        if purchase.kind == "estimate":
            return account, None
        return account, await lune.quote(account, purchase)


def _print_quote(found: Quote) -> None:
    rows: list[tuple[object, ...]] = [
        (
            bundle.name or bundle.bundle_id,
            bundle.quantity,
            bundle.unit_price,
            bundle.offset_cost,
            "short of inventory" if bundle.is_short else "",
        )
        for bundle in found.bundles
    ]
    rows.append(("commission", "", "", found.commission, ""))
    rows.append(("total", found.quantity, "", found.total_cost, ""))
    print_table(["bundle", "tonnes", f"{found.currency}/t", found.currency, ""], rows)


def _buy(invocation: Invocation, purchase: Purchase, options: dict[str, Any]) -> None:
    if not options["yes"] and not sys.stdin.isatty():
        raise click.UsageError("nobody to ask: say --yes to buy without a question")
    invocation.configure_logs("warning")
    key = options["idempotency_key"] or uuid.uuid4().hex
    account, found = asyncio.run(_ask_price(invocation.settings, purchase, options["account"]))
    if not options["json_output"] and found is not None:
        _print_quote(found)
    notice(f"idempotency key: {key}")
    if not options["yes"]:
        _ask(account, found)
    placed = _place(invocation.settings, purchase, account, key, options["wait"])
    state = placed.pop("certificate")
    if options["json_output"]:
        print_json(placed | {"idempotency_key": key, "certificate_state": state})
    else:
        ordered = "was ordered before under this key" if placed["existed"] else "ordered"
        click.echo(
            f"{placed['order_id']} {ordered} (Lune: {placed['status']}); "
            "its certificate will be stored"
        )
        if options["wait"] is not None:
            click.echo(f"its certificate: {state or 'not owed yet'}")
    if options["wait"] is not None and state != "stored":
        notice("its certificate is not stored yet; the daemon or the next drain goes on")
        sys.exit(UNFINISHED)


def _ask(account: Account, found: Quote | None) -> None:
    total = "a sum Lune tells when it is placed"
    if found is not None:
        total = f"{found.total_cost} {printable(found.currency)}"
    who = f"{printable(account.name)} ({account.id})"
    click.confirm(f"Buy for {total}, account {who}?", abort=True, err=True)
    if account.mode == "live":
        click.confirm(
            f"This is a live key: {who} really pays {total}. Sure?",
            abort=True,
            err=True,
        )


def _place(
    settings: Settings, purchase: Purchase, account: Account, key: str, wait: timedelta | None
) -> dict[str, Any]:
    """Place it, by the daemon when one runs; return what was placed and its certificate's state."""
    from harvester.domain.errors import LedgerUnavailable, OutcomeUnknown
    from harvester.domain.purchases import in_doubt
    from harvester.web.local_socket import NoDaemonError, ask_daemon

    body = {
        "account_id": account.id,
        "idempotency_key": key,
        "kind": purchase.kind,
        "request": purchase.request,
    }
    deadline = time.monotonic() + (wait.total_seconds() if wait is not None else 0)
    ledger = settings.database.path
    try:
        placed = ask_daemon(ledger, "POST", "/control/purchase", body, timeout=_TIMEOUT)
    except NoDaemonError:
        return asyncio.run(_place_ourselves(settings, purchase, account, key, deadline))
    except LedgerUnavailable as error:
        raise OutcomeUnknown(in_doubt(error, key)) from error
    state = asyncio.run(_watch(settings, placed["order_id"], deadline))
    return {**placed, "certificate": state}


async def _place_ourselves(
    settings: Settings, purchase: Purchase, account: Account, key: str, deadline: float
) -> dict[str, Any]:
    from harvester.app import open_app
    from harvester.context import Stop

    async with open_app(settings, Stop(), "order") as app:
        known = await app.accounts.account(account.id)
        placed = asdict(await app.purchaser.place(known, purchase, key))
        state = await _work(app, placed["order_id"], deadline)
        return placed | {"certificate": state}


async def _watch(settings: Settings, order_id: str, deadline: float) -> str | None:
    """Wait for the daemon to store the certificate; return its state in the end."""
    while True:
        state, over = await _certificate(settings, order_id)
        if over or time.monotonic() >= deadline:
            return state
        await asyncio.sleep(_POLL_SECONDS)


async def _work(app: App, order_id: str, deadline: float) -> str | None:
    """Follow the order ourselves while it is waited for; return its certificate's state."""
    while True:
        state, over = await _certificate(app.settings, order_id)
        if over or time.monotonic() >= deadline:
            return state
        await app.sweep.run_once([])
        await app.collector.run_once()
        await asyncio.sleep(_POLL_SECONDS)


async def _certificate(settings: Settings, order_id: str) -> tuple[str | None, bool]:
    """Return the state of an order's certificate, and whether waiting for it is over."""
    from harvester.domain.lifecycle import COMPLETE, is_open
    from harvester.ledger.database import open_reader
    from harvester.ledger.queries import find_orders

    async with open_reader(settings.database.path) as database:
        (detail, *_) = await find_orders(database, order_id)
    row = detail.order
    ended_without = not is_open(row.status) and row.status != COMPLETE
    return row.certificate_state, ended_without or (
        row.status == COMPLETE and row.certificate_state == "stored"
    )
