"""A Lune that is as fast as a disk cache: one account's listing and certificates, as files.

nginx serves them, so that the server costs next to nothing and every peer fetches the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harvester.domain.polling import PAGE_SIZE

ACCOUNT = "benchaccount00000000000000000001"
KEY = "key-of-the-benchmark"

_CONFIG = """
daemon off; worker_processes 1; {user}
error_log {folder}/error.log; pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000; default_type application/json;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location = /v1/orders {{ root {folder}; try_files /pages/$arg_after.json =404; }}
    location = /v1/accounts/me {{ alias {folder}/account.json; }}
    location ~ ^/v1/orders/([^/]+)/certificate$ {{
      default_type application/pdf; alias {folder}/certificates/$1.pdf;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class StaticLune:
    """Where it answers, the orders it has, and the bytes of each certificate by SHA-256."""

    base_url: str
    order_ids: tuple[str, ...]
    digests: frozenset[str]


@contextmanager
def static_lune(folder: Path, certificates: int, size: int) -> Iterator[StaticLune]:
    """Serve so many complete orders with certificates of about ``size`` bytes.

    Raises ``FileNotFoundError`` when nginx is not installed (Debian: ``nginx-light``).
    """
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if nginx is None:
        raise FileNotFoundError("nginx is not installed; Debian has it as nginx-light")
    order_ids, digests = _write_files(folder, certificates, size)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(_CONFIG.format(folder=folder, port=port, user=user))
    process = subprocess.Popen([nginx, "-c", str(config), "-p", str(folder)])
    try:
        _await_port(port)
        yield StaticLune(f"http://127.0.0.1:{port}/v1", order_ids, digests)
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(10)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("nginx does not listen")


def _write_files(
    folder: Path, certificates: int, size: int
) -> tuple[tuple[str, ...], frozenset[str]]:
    rng = random.Random(certificates)
    (folder / "certificates").mkdir(parents=True)
    (folder / "pages").mkdir()
    order_ids, digests = [], set()
    for _ in range(certificates):
        order_ids.append(base64.b64encode(rng.randbytes(24), b"aZ").decode())
        data = _pdf(rng, size)
        digests.add(hashlib.sha256(data).hexdigest())
        (folder / "certificates" / f"{order_ids[-1]}.pdf").write_bytes(data)
    for start in range(0, certificates, PAGE_SIZE):
        ids = order_ids[start : start + PAGE_SIZE]
        more = start + PAGE_SIZE < certificates
        page = {
            "has_more": more,
            "next_cursor": f"page-{start + PAGE_SIZE}" if more else None,
            "data": [_order(one, start + n) for n, one in enumerate(ids)],
        }
        name = f"page-{start}" if start else ""
        (folder / "pages" / f"{name}.json").write_text(json.dumps(page))
    (folder / "account.json").write_text(json.dumps(_account()))
    return tuple(order_ids), frozenset(digests)


def _order(order_id: str, age: int) -> dict[str, object]:
    return {
        "id": order_id,
        "status": "complete",
        "quantity": "1.25",
        "quantity_unit": "t",
        "created_at": f"2026-{12 - age // 3000 % 12:02}-{28 - age % 28:02}T10:00:00.000Z",
        "metadata": {},
    }


def _account() -> dict[str, object]:
    return {
        "id": ACCOUNT,
        "name": "Benchmark",
        "type": "test",
        "scope": "account",
        "currency": "EUR",
        "beneficiary": "Benchmark",
        "organisation_id": "organisation",
    }


def _pdf(rng: random.Random, size: int) -> bytes:
    """Return a whole PDF of two pages with one large image stream, as certificates have."""
    image = rng.randbytes(max(0, size - 1200))
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 2 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 5 0 R >>",
        b"<< /Length 44 >>\nstream\nBT /F1 24 Tf 72 700 Td (Certificate) Tj ET    \nendstream",
        b"<< /Type /XObject /Length %d >>\nstream\n%b\nendstream" % (len(image), image),
    ]
    text = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(text))
        text += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(text)
    text += b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1)
    text += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    text += b"trailer\n<< /Size %d /Root 1 0 R >>\n" % (len(bodies) + 1)
    return bytes(text + b"startxref\n%d\n%%%%EOF\n" % start)
