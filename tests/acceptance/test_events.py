"""Events reach a billing system: by the daemon and by a drain, over HTTP and by a command."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from harvester.cli.exits import CONFIGURATION, DONE, UNFINISHED, USAGE
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import Home, Ran, until
from tests.integration.receiver import Receiver, receiving

QUICK = {"harvest__sweep_interval": "200ms", "harvest__longest_interval": "1s"}


def a_lune() -> Sandbox:
    return Sandbox(SandboxOptions(orders=0, client_accounts=0, speed=0, rate_limit=0))


class Billing:
    """A home whose harvester delivers events to somebody."""

    def __init__(self, folder: Path, lune: Sandbox, **settings: object) -> None:
        self.home = Home(folder, lune, http__listen="", **(QUICK | settings))

    async def secret(self) -> str:
        """Have the command make a secret, in a file of its own."""
        ran = await self.home.run("events", "secret")
        assert ran.code == DONE
        file = self.home.folder / "billing_secret"
        file.write_text(ran.out)
        file.chmod(0o600)
        return ran.out.strip()

    def add(self, kind: str, **settings: object) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        with self.home.config.open("a") as config:
            config.write("\n".join((f"[[events.{kind}]]", *lines, "")))

    async def register(self, receiver: Receiver, **settings: object) -> str:
        """Register the receiver, under the name billing."""
        secret = await self.secret()
        self.add(
            "receivers",
            **{
                "name": "billing",
                "url": receiver.url,
                "secret_file": str(self.home.folder / "billing_secret"),
                "allow_private": True,
                **settings,
            },
        )
        return secret

    async def events(self, *options: str) -> list[Any]:
        ran = await self.home.run("events", "list", "--json", *options)
        assert ran.code == DONE, ran.err
        return ran.rows()


def has_accepted(receiver: Receiver, status: str) -> bool:
    return any(event["data"]["status"] == status for event in receiver.accepted)


def types(receiver: Receiver) -> list[str]:
    return [event["type"] for event in receiver.accepted]


async def test_a_daemon_delivers_the_events_of_an_order_up_to_its_stored_certificate(
    tmp_path: Path,
) -> None:
    async with a_lune() as lune, receiving() as receiver:
        billing = Billing(tmp_path, lune)
        secret = await billing.register(receiver)
        hooked = tmp_path / "hooked"
        script = (
            "import os, pathlib, sys;"
            "pdf = pathlib.Path(os.environ['HARVESTER_CERTIFICATE_PATH']).read_bytes();"
            "pathlib.Path(sys.argv[1]).write_bytes(pdf)"
        )
        billing.add(
            "hooks",
            name="copy",
            command=[sys.executable, "-c", script, str(hooked)],
            types=["certificate.stored"],
        )
        async with billing.home.daemon() as daemon:
            order = lune.create_order("placed", hold=True, idempotency_key="INV-1")
            await until(lambda: len(receiver.accepted) == 1)
            lune.move_order(order.id, "complete")
            await until(lambda: "certificate.stored" in types(receiver))
            await until(hooked.exists)
            await until(lambda: hooked.read_bytes() == lune.certificate(order.id))
            ended = await daemon.end()
        assert ended.code == DONE, ended.err
        (row,) = (await billing.home.orders()).values()
        for sent in receiver.sent:
            assert Webhook(secret).verify(sent.body, sent.headers) == sent.event
        moves = [
            (event["data"]["previous_status"], event["data"]["status"])
            for event in receiver.accepted
            if event["type"] == "order.status_changed"
        ]
        assert moves == [(None, "placed"), ("placed", "complete")]
        stored = receiver.accepted[-1]
        assert stored["subject"] == order.id
        assert stored["data"]["idempotency_key"] == "INV-1"
        assert stored["data"]["sha256"] == row["certificate"]["sha256"]
        assert row["certificate"]["path"].endswith(stored["data"]["path"])
        listed = await billing.events()
        assert [one["event"] for one in listed] == receiver.accepted
        assert await billing.events("--undelivered") == []
        assert [one["seq"] for one in await billing.events("--after", "1")] == [2, 3]
        assert secret.removeprefix("whsec_") not in ended.err


async def test_what_hangs_does_not_keep_others_from_getting_events(
    tmp_path: Path,
) -> None:
    go = tmp_path / "go"
    async with a_lune() as lune, receiving() as receiver:
        billing = Billing(tmp_path, lune)
        await billing.register(receiver)
        waiting = f"touch {tmp_path}/begun; while [ ! -e {go} ]; do sleep 0.05; done"
        billing.add("hooks", name="hanging", command=["/bin/sh", "-c", waiting], timeout="5m")
        async with billing.home.daemon() as daemon:
            order = lune.create_order("placed", hold=True)
            await until((tmp_path / "begun").exists)
            for status in ("paid", "retiring"):
                lune.move_order(order.id, status)
                await until(partial(has_accepted, receiver, status))
            go.touch()
            ended = await daemon.end()
        assert ended.code == DONE, ended.err


async def test_a_drain_delivers_at_its_end(tmp_path: Path) -> None:
    async with a_lune() as lune, receiving() as receiver:
        billing = Billing(tmp_path, lune)
        await billing.register(receiver, types=["certificate.stored"])
        for _ in range(3):
            lune.create_order("complete", hold=True)
        report = (await billing.home.run("run", "--drain", "--json")).document()
        assert (report["events_delivered"], report["deliveries_failed"]) == (3, 0)
        assert types(receiver) == ["certificate.stored"] * 3


async def test_a_dry_run_delivers_nothing(tmp_path: Path) -> None:
    async with a_lune() as lune, receiving() as receiver:
        billing = Billing(tmp_path, lune)
        await billing.register(receiver)
        lune.create_order("complete", hold=True)
        ran = await billing.home.run("run", "--drain", "--dry-run")
        assert ran.code == DONE, ran.err
        assert receiver.sent == []


async def test_a_daemon_that_was_killed_before_a_delivery_repeats_it_under_the_same_id(
    tmp_path: Path,
) -> None:
    async with a_lune() as lune, receiving() as receiver:
        billing = Billing(tmp_path, lune)
        await billing.register(receiver)
        receiver.hold.clear()
        lune.create_order("placed", hold=True)
        async with billing.home.daemon() as daemon:
            await until(lambda: receiver.at_once)  # committed and sent, not answered
            await daemon.end(signal.SIGKILL)
        (waiting,) = await billing.events("--undelivered")
        assert waiting["undelivered"][0]["receiver"] == "billing"
        receiver.hold.set()
        async with billing.home.daemon() as daemon:
            await until(lambda: not receiver.at_once and len(receiver.sent) == 2)
            await daemon.end()
    assert {one.headers["webhook-id"] for one in receiver.sent} == {waiting["event"]["id"]}
    assert {one.body for one in receiver.sent} == {receiver.sent[0].body}


@pytest.mark.parametrize("daemon_runs", [False, True])
async def test_what_a_receiver_missed_can_be_listed_and_sent_again(
    tmp_path: Path, daemon_runs: bool
) -> None:
    async with a_lune() as lune, receiving() as receiver:
        billing = Billing(tmp_path, lune)
        await billing.register(receiver)
        receiver.judge = lambda _: 410
        lune.create_order("placed", hold=True)
        ran = await billing.home.run("run", "--drain")
        assert "receiver parked" in ran.err
        table = await billing.home.run("events", "list", "--undelivered")
        assert "status 410" in table.out
        assert "billing" in table.out

        receiver.judge = lambda _: 200

        async def resend(*arguments: str) -> Ran:
            return await billing.home.run("events", "resend", *arguments, "--json")

        if daemon_runs:
            async with billing.home.daemon():
                ran = await resend("--receiver", "billing")
                await until(lambda: len(receiver.accepted) == 1)
                again = await resend("1")
                await until(lambda: len(receiver.accepted) == 2)
        else:
            ran = await resend("--receiver", "billing")
            await billing.home.run("run", "--drain")
            again = await resend("1")
            await billing.home.run("run", "--drain")
        for one in (ran, again):
            assert one.code == DONE, one.err
            assert one.rows() == [{"seq": 1, "receiver": "billing"}]
        assert len({event["id"] for event in receiver.accepted}) == 1
        assert len(receiver.accepted) == 2

        nothing = await resend("77")
        assert nothing.code == UNFINISHED
        assert "event 77" in nothing.err
        unknown = await resend("--receiver", "nobody")
        assert unknown.code == USAGE
        assert "there are: billing" in unknown.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "http://billing.example.com/"}, "events.receivers.0.url: should begin with https"),
        ({"url": "https://10.0.0.1/"}, "is on this machine or a private network"),
        ({"url": "ftp://billing.example.com/"}, "should be a URL such as"),
        ({"url": "https://u:CANARY@billing.example.com/"}, "should be a URL such as"),
        ({"name": "a b"}, "events.receivers.0.name: should be 1 to 64"),
        ({"types": ["order.lost"]}, "events.receivers.0.types.0"),
        ({"secret_file": []}, "events.receivers.0.secret_file"),
        ({"urll": "x"}, "events.receivers.0.urll"),
    ],
)
async def test_a_receiver_that_cannot_work_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    async with a_lune() as lune:
        billing = Billing(tmp_path, lune)
        good = {"name": "billing", "url": "https://billing.example.com/", "secret_file": "gone"}
        billing.add("receivers", **(good | change))
        ran = await billing.home.run("run")
    assert ran.code == CONFIGURATION
    assert words in ran.err
    assert "CANARY" not in ran.err


async def test_a_hook_that_cannot_work_is_refused_by_name(tmp_path: Path) -> None:
    async with a_lune() as lune:
        billing = Billing(tmp_path, lune)
        billing.add("hooks", name="slow", command=["/bin/true"], timeout="10m")
        billing.add("hooks", name="empty", command=[])
        ran = await billing.home.run("run")
    assert ran.code == CONFIGURATION
    assert "events.hooks.0.timeout: should be at most 5m" in ran.err
    assert "events.hooks.1.command" in ran.err


async def test_a_name_is_one_receiver_s_only(tmp_path: Path) -> None:
    async with a_lune() as lune:
        billing = Billing(tmp_path, lune)
        billing.add("hooks", name="one", command=["/bin/true"])
        billing.add("hooks", name="one", command=["/bin/false"])
        ran = await billing.home.run("run")
    assert ran.code == CONFIGURATION
    assert "needs a name of its own: one" in ran.err


async def test_a_secret_that_cannot_be_used_is_found_before_anything_begins(
    tmp_path: Path,
) -> None:
    async with a_lune() as lune, receiving() as receiver:
        billing = Billing(tmp_path, lune)
        await billing.register(receiver)
        (tmp_path / "billing_secret").write_text("CANARY-not-a-secret")
        ran = await billing.home.run("run")
    assert ran.code == CONFIGURATION
    assert "events.receivers.billing.secret: should be whsec_" in ran.err
    assert "CANARY" not in ran.err
