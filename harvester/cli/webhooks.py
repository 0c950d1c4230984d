"""``webhooks``: what is set up at Lune to push events to us."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from harvester.cli.invocation import Invocation, pass_invocation
from harvester.cli.output import AccountId, as_json, notice, print_json, print_table, short

if TYPE_CHECKING:
    from harvester.config.settings import Settings
    from harvester.domain.lune_events import Subscription
    from harvester.lune import LuneClient

_OLD_SECRETS_KEPT = 1

T = TypeVar("T")


@click.group("webhooks", short_help="The webhooks set up at Lune.")
@pass_invocation
def webhooks(_invocation: Invocation) -> None:
    """Manage the webhooks that are set up at Lune.

    Lune shows a secret once: it goes straight into webhook.secret_file, and is never printed. A
    running daemon finds it there within a second.
    """


@webhooks.command("list")
@as_json
@pass_invocation
def list_webhooks(invocation: Invocation, json_output: bool) -> None:
    """List the webhooks; of a secret Lune shows the last four characters."""
    from harvester.app import make_client

    async def work() -> list[Subscription]:
        async with make_client(invocation.settings) as lune:
            return await lune.fetch_webhooks()

    _print(_run(invocation, work), json_output=json_output)


@webhooks.command("register")
@click.argument("url")
@click.option(
    "--account",
    "accounts",
    type=AccountId(),
    metavar="ID",
    multiple=True,
    help="Only events of this account; else of those in lune.accounts.",
)
@as_json
@pass_invocation
def register(
    invocation: Invocation, url: str, accounts: tuple[str, ...], json_output: bool
) -> None:
    """Have Lune push events to URL, the address under which Lune reaches the listener.

    It ends in /webhooks/lune, and is https unless it is on this machine.
    """
    _check_url(url)
    file = _secret_file(invocation.settings)

    from harvester.app import make_client

    async def work() -> Subscription:
        async with make_client(invocation.settings) as lune:
            wanted = accounts or await _followed(invocation.settings, lune)
            made = await lune.register_webhook(url, wanted)
            try:
                _keep(invocation.settings, file, made)
            except OSError:
                await lune.remove_webhook(made.id)  # nobody has its secret
                raise
            return made

    made = _run(invocation, work)
    _print([made], json_output=json_output)
    notice(f"its secret is in {file}")


@webhooks.command("remove")
@click.argument("webhook_id", metavar="ID")
@pass_invocation
def remove(invocation: Invocation, webhook_id: str) -> None:
    """End a webhook at Lune."""
    _check_id(webhook_id)

    from harvester.app import make_client

    async def work() -> None:
        async with make_client(invocation.settings) as lune:
            await lune.remove_webhook(webhook_id)

    _run(invocation, work)
    click.echo(f"webhook {webhook_id} is removed")


@webhooks.command("rotate")
@click.argument("webhook_id", metavar="ID")
@as_json
@pass_invocation
def rotate(invocation: Invocation, webhook_id: str, json_output: bool) -> None:
    """Give a webhook a new secret; the one before it stays good for what is under way."""
    _check_id(webhook_id)
    file = _secret_file(invocation.settings)

    from harvester.app import make_client

    async def work() -> Subscription:
        async with make_client(invocation.settings) as lune:
            made = await lune.rotate_webhook(webhook_id)
        _keep(invocation.settings, file, made)
        return made

    made = _run(invocation, work)
    _print([made], json_output=json_output)
    notice(f"its new secret is in {file}, before the old one")


def _run(invocation: Invocation, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    invocation.configure_logs("warning")
    try:
        return asyncio.run(work())
    except OSError as error:
        raise click.ClickException(
            f"the secret could not be written: {error.strerror}; mend that, then register or "
            "rotate again"
        ) from error


def _check_url(url: str) -> None:
    from harvester.domain.lune_events import WEBHOOK_PATH
    from harvester.domain.urls import check_base_url

    try:
        check_base_url(url)
    except ValueError as error:
        raise click.UsageError(f"the URL {error}") from None
    if not url.endswith(WEBHOOK_PATH):
        raise click.UsageError(
            f"the URL should end in {WEBHOOK_PATH}, where the listener takes webhooks"
        )


def _check_id(webhook_id: str) -> None:
    from harvester.domain.orders import is_identifier

    if not is_identifier(webhook_id):
        raise click.UsageError("a webhook's id has letters, digits, - and _ only")


def _secret_file(settings: Settings) -> Path:
    """Return where secrets are kept, before there is one that could be lost."""
    from harvester.domain.errors import ConfigurationError

    file = settings.webhook.secret_file
    if file is None:
        raise ConfigurationError(
            "webhook.secret_file should name a file for the secret, which Lune shows only once"
        )
    if not file.absolute().parent.is_dir():
        raise ConfigurationError(f"webhook.secret_file {file}: its folder does not exist")
    return file


def _keep(settings: Settings, file: Path, made: Subscription) -> None:
    from harvester.config.secrets import write_secrets

    secrets = settings.webhook_secrets
    known = secrets.read_all() if secrets is not None and file.exists() else ()
    write_secrets(file, [made.secret, *known[:_OLD_SECRETS_KEPT]])


async def _followed(settings: Settings, lune: LuneClient) -> Sequence[str]:
    """Return the ids of the configured accounts; none when all are followed."""
    wanted = settings.lune.accounts
    if "all" in wanted:
        return ()
    return [(await lune.fetch_own_account()).id if one == "default" else one for one in wanted]


def _print(found: Sequence[Subscription], *, json_output: bool) -> None:
    if json_output:
        for one in found:
            print_json(_shape(one))
        return
    print_table(
        ["webhook", "url", "enabled", "mode", "accounts", "created", "secret"],
        [
            (
                one.id,
                one.url,
                "yes" if one.enabled else "no",
                one.mode,
                " ".join(one.account_ids) or "all",
                short(one.created_at),
                f"...{one.secret[-4:]}",
            )
            for one in found
        ],
    )


def _shape(one: Subscription) -> dict[str, Any]:
    from harvester.serializers import instant

    return {
        "id": one.id,
        "url": one.url,
        "enabled": one.enabled,
        "mode": one.mode,
        "account_ids": list(one.account_ids),
        "created_at": instant(one.created_at),
        "secret_ends_in": one.secret[-4:],
    }
