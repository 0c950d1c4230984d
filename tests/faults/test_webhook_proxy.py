"""Webhooks through a real nginx, as it stands before a listener: what is signed comes through."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.faults.catalogue import fault
from tests.faults.scene import Scene
from tests.faults.webhook_client import PATH, WebhookClient, body_of, event, header, webhook_client
from tests.needs import need

NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")

CONFIG = """
daemon off; worker_processes 1; {user}
error_log {folder}/error.log; pid {folder}/nginx.pid;
events {{ worker_connections 128; }}
http {{
  access_log off; gzip on; gzip_proxied any; gzip_types *; gzip_min_length 1;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 1m;
    location {path} {{
      proxy_pass http://127.0.0.1:{to};
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
      {how}
    }}
  }}
}}
"""

WAYS = {
    "as it is": "",
    "kept whole first": "proxy_buffering on; client_body_in_file_only clean;",
    "passed on in pieces": "proxy_buffering off; proxy_request_buffering off;"
    ' proxy_http_version 1.1; proxy_set_header Connection "";',
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@asynccontextmanager
async def proxied(
    client: WebhookClient, folder: Path, how: str
) -> AsyncIterator[aiohttp.ClientSession]:
    """Put nginx before the listener; yields a session with it."""
    need(NGINX, "nginx (package nginx-light)")
    assert NGINX is not None
    folder.mkdir()
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        CONFIG.format(folder=folder, port=port, to=client.port, path=PATH, how=how, user=user)
    )
    process = await asyncio.create_subprocess_exec(NGINX, "-c", config, "-p", folder)
    try:
        async with asyncio.timeout(20):
            while not await answers(port):
                assert process.returncode is None
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@fault("W20")
async def test_through_nginx_the_bytes_that_were_signed_arrive(
    scene: Scene, tmp_path: Path, how: str
) -> None:
    # Larger than what nginx keeps in memory, and with bytes that a careless hand would tidy up.
    large = event("order1", number=1, data={"order": {"id": "order1", "note": "é\n" * 50_000}})
    body = b"\r\n " + body_of(large) + b" \r\n\t"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 40_000):
            yield body[start : start + 40_000]
            await asyncio.sleep(0)

    async def post(session: aiohttp.ClientSession, data: object, **headers: str) -> int:
        async with session.post(PATH, data=data, headers=headers) as answer:
            await answer.read()
            return answer.status

    async with webhook_client(scene) as client, proxied(client, tmp_path / "nginx", how) as session:
        signed = {"Lune-HMAC": header(body)}
        assert await post(session, body, **signed) == 200
        assert await post(session, pieces(), **signed, **{"Accept-Encoding": "gzip, br"}) == 200
        assert await client.rows("SELECT count(*) FROM webhook_events") == [(1,)]
        assert await post(session, body + b" ", **signed) == 401
        compressed = gzip.compress(body)
        encoded = {"Lune-HMAC": header(compressed), "Content-Encoding": "gzip"}
        assert await post(session, compressed, **encoded) == 415
        assert client.webhooks.outcomes["taken"] == 2
