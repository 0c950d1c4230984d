"""``harvester sandbox``: a local Lune API to try things against."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harvester.sandbox import Sandbox


class _ListingFaults(click.Command):
    """A command whose help ends with the table of faults."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        from harvester.sandbox.faults import KINDS

        with formatter.section("Faults, NAME[=ARG][,share=S][,times=N]"):
            formatter.write_dl(
                [
                    (f"{name}[={kind.argument}]" if kind.argument else name, kind.meaning)
                    for name, kind in KINDS.items()
                ]
            )


def _loopback(_: click.Context, __: click.Parameter, host: str) -> str:
    try:
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise click.BadParameter("the sandbox listens on loopback only, e.g. 127.0.0.1")


@click.command(
    "sandbox", short_help="A local Lune with a fast clock and faults.", cls=_ListingFaults
)
@click.option("--host", default="127.0.0.1", show_default=True, callback=_loopback)
@click.option("--port", type=click.IntRange(0, 65535), default=8085, show_default=True)
@click.option(
    "--orders", type=click.IntRange(min=0), default=40, show_default=True, help="Orders at first."
)
@click.option(
    "--accounts", type=click.IntRange(min=1), default=1, show_default=True, help="Own accounts."
)
@click.option(
    "--client-accounts",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Client accounts.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=8640.0,
    show_default=True,
    help="Simulated seconds a second; at 8640 a day passes in ten seconds.",
)
@click.option(
    "--rate-limit",
    type=click.IntRange(min=0),
    default=15,
    show_default=True,
    help="Requests a second; 0 for no limit.",
)
@click.option("--key", default="sandbox-key", show_default=True, help="The API key to accept.")
@click.option("--mode", type=click.Choice(["test", "live"]), default="test", show_default=True)
@click.option(
    "--certificate-at",
    type=click.Choice(["retiring", "complete"]),
    default="retiring",
    show_default=True,
    help="The status from which a certificate is served.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same orders.")
@click.option(
    "--fault", "faults", multiple=True, metavar="FAULT", help="Go wrong like this; repeatable."
)
def command(host: str, port: int, **options: Any) -> None:
    """Serve a local Lune API with a fast clock and faults on demand, until interrupted.

    GET /_sandbox shows its clock, faults and counts of requests; POST and DELETE under
    /_sandbox/faults change faults while it runs.
    """
    from harvester.sandbox import SandboxOptions
    from harvester.sandbox.server import Sandbox

    try:
        server = Sandbox(SandboxOptions(**options))
    except ValueError as broken_rule:
        raise click.UsageError(str(broken_rule)) from None
    try:
        asyncio.run(_serve(server, host, port))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from None


async def _serve(server: Sandbox, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start(host, port)
    try:
        click.echo(_introduction(server))
        await stop.wait()
    finally:
        await server.stop()


def _introduction(server: Sandbox) -> str:
    url, key = server.base_url, server.key
    accounts = "\n".join(
        f"  {account.id}  {account.name} ({account.scope}, {account.mode})"
        for account in server.accounts
    )
    return f"""\
Lune sandbox on {url}, key {key}

Accounts, the key's default one first:
{accounts}

Try:
  curl -H 'Authorization: Bearer {key}' {url}/orders
  curl {url.removesuffix("/v1")}/_sandbox

For config.toml:
[lune]
base_url = "{url}"
api_key = "{key}"
accounts = ["all"]
"""
