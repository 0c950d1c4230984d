"""The listener of the installed daemon: where it listens, and when it refuses to."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import aiohttp
import pytest

from harvester.cli.exits import CONFIGURATION, DONE, UNFINISHED
from harvester.sandbox import Sandbox, SandboxOptions
from tests.acceptance.harness import PATIENCE, Home


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def a_lune() -> Sandbox:
    return Sandbox(SandboxOptions(orders=3, speed=0, rate_limit=0))


async def test_the_daemon_answers_at_the_configured_address_and_healthcheck_asks_it(
    tmp_path: Path,
) -> None:
    async with a_lune() as lune:
        home = Home(tmp_path, lune, http__listen=f"127.0.0.1:{free_port()}", http__token="secret-1")
        ran = await home.run("healthcheck")
        assert ran.code == UNFINISHED, ran.err
        assert "no answer" in ran.out
        async with home.daemon() as daemon, aiohttp.ClientSession() as session:
            base = f"http://{daemon.events('listening')[0]['address']}"
            headers = {"Authorization": "Bearer secret-1"}
            async with session.get(f"{base}/v1/orders", headers=headers) as answer:
                assert answer.status == 200

            async with asyncio.timeout(PATIENCE):
                while (ran := await home.run("healthcheck")).code != DONE:
                    assert "no account was swept yet" in ran.out
            assert ran.out == "live\tyes\nready\tyes\n"
            assert (await home.run("healthcheck", "--live")).out == "live\tyes\n"
            document = (await home.run("healthcheck", "--ready", "--json")).document()
            assert document["ready"]["checks"]["ledger"] == {"ok": True}
            ended = await daemon.end()
        assert ended.code == DONE, ended.err
        assert "secret-1" not in ended.err + ended.out


async def test_a_daemon_that_cannot_work_is_alive_and_not_ready(tmp_path: Path) -> None:
    async with a_lune() as lune:
        home = Home(tmp_path, lune, http__listen=f"127.0.0.1:{free_port()}")
        lune.faults.add("server-errors,share=1")
        async with home.daemon():
            assert (await home.run("healthcheck", "--live")).code == DONE
            ran = await home.run("healthcheck", "--ready")
            assert ran.code == UNFINISHED
            assert "sweep\tno account was swept yet" in ran.out


async def test_without_a_listener_healthcheck_asks_over_the_local_socket(tmp_path: Path) -> None:
    async with a_lune() as lune:
        home = Home(tmp_path, lune, http__listen="")
        ran = await home.run("healthcheck")
        assert ran.code == CONFIGURATION
        assert "http.listen names no address" in ran.err
        async with home.daemon() as daemon:
            assert not daemon.events("listening")
            assert (await home.run("healthcheck", "--live")).code == DONE


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "some.host.invalid:8080"])
async def test_an_address_others_reach_is_refused_without_a_token(
    tmp_path: Path, listen: str
) -> None:
    async with a_lune() as lune:
        ran = await Home(tmp_path, lune, http__listen=listen).run("run")
    assert ran.code == CONFIGURATION
    assert "a token is needed" in ran.err


@pytest.mark.parametrize("listen", ["8080", ":8080", "127.0.0.1", "127.0.0.1:65536", "a b:1"])
async def test_an_address_that_is_none_is_refused_by_name(tmp_path: Path, listen: str) -> None:
    ran = await Home(tmp_path, http__listen=listen).run("orders")
    assert ran.code == CONFIGURATION
    assert "http.listen: should be host:port" in ran.err


async def test_a_chosen_address_that_is_taken_is_refused_and_the_default_one_is_not_needed(
    tmp_path: Path,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with a_lune() as lune:
            port = taken.getsockname()[1]
            ran = await Home(tmp_path, lune, http__listen=f"127.0.0.1:{port}").run("run")
    assert ran.code == CONFIGURATION
    assert f"cannot listen on 127.0.0.1:{port}" in ran.err


async def test_a_token_that_cannot_be_read_ends_the_daemon(tmp_path: Path) -> None:
    async with a_lune() as lune:
        listen = f"127.0.0.1:{free_port()}"
        home = Home(tmp_path, lune, http__listen=listen, http__token_file=str(tmp_path / "none"))
        ran = await home.run("run")
    assert ran.code == CONFIGURATION
    assert "http.token_file" in ran.err
