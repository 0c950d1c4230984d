"""Whether what is set up at Lune is what is configured here, for ``doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harvester.config.settings import Settings
    from harvester.domain.lune_events import Subscription

Judgement = tuple[Literal["ok", "warning", "fail"], str]


async def judge_webhooks(settings: Settings) -> Judgement:
    """Say how the webhooks are, asking Lune when there is a secret; never shows one."""
    from harvester.app import make_client
    from harvester.domain.errors import ConfigurationError, HarvesterError

    if settings.webhook_secrets is None:
        return "ok", "not configured; sweeps find everything"
    try:
        secrets = settings.webhook_secrets.read_all()
    except ConfigurationError as error:
        return "fail", f"{error}; `harvester webhooks register URL` writes it"
    if settings.http.address is None:
        return "warning", 'http.listen is "", so nothing takes webhooks; sweeps find everything'
    try:
        async with make_client(settings) as lune:
            found = await lune.fetch_webhooks()
    except HarvesterError as error:
        return "warning", f"Lune does not tell what is set up: {error}"
    return compare(found, secrets, settings.webhook.url)


def compare(found: list[Subscription], secrets: tuple[str, ...], url: str) -> Judgement:
    """Hold what is set up against the secrets, newest first, and our address, if it is known."""
    from harvester.domain.lune_events import WEBHOOK_PATH

    ours = [one for one in found if (one.url == url if url else one.url.endswith(WEBHOOK_PATH))]
    if not ours:
        elsewhere = f"; Lune has {', '.join(one.url for one in found)}" if found else ""
        address = url or f"an address that ends in {WEBHOOK_PATH}"
        return "warning", f"none is registered for {address}{elsewhere}; `webhooks register` it"
    known = {secret[-4:] for secret in secrets}
    signed = [one for one in ours if one.secret[-4:] in known]
    if not signed:
        names = ", ".join(one.id for one in ours)
        return "warning", (
            f"{names}: its secret is not one of ours, so every event is refused; `webhooks rotate`"
        )
    for one in signed:
        if not one.enabled:
            return "warning", f"{one.id}: disabled at Lune; sweeps find everything"
    newest = [one for one in signed if one.secret[-4:] == secrets[0][-4:]]
    if not newest:
        return "warning", f"{signed[0].id}: Lune signs with a secret that is not our newest"
    return "ok", f"{newest[0].id}: pushed to {newest[0].url}"
