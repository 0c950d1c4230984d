#!/usr/bin/env python3
"""A stand-in for a billing system: take the harvester's events, and print a line an invoice.

A template for real ones. It does what every receiver of the harvester's events has to: look at the
signature before anything else, accept each event once however often it comes, have what the event
asks for done before it answers 2xx, and answer 5xx to what it cannot do yet: it comes again.

Needs the package standardwebhooks, which exists for other languages too. Configured by the
environment: BILLING_LISTEN (host:port), BILLING_SECRET_FILE (one secret a line) and
BILLING_CERTIFICATES (the harvester's archive, which it only reads).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from standardwebhooks import Webhook, WebhookVerificationError

LARGEST_EVENT: Final = 64 * 1024
TIMEOUT: Final = 10.0


class Unavailable(Exception):
    """What the event needs cannot be had now; the harvester is to send it again."""


class Books:
    """What was invoiced. A real system keeps it in its database, with the events it has accepted.

    The id and what is done about the event belong into one transaction: an event comes again when
    its answer was lost.
    """

    def __init__(self, certificates: Path) -> None:
        self._certificates = certificates
        self._accepted: set[str] = set()
        self._one_at_a_time = threading.Lock()

    def accept(self, event_id: str, event: Mapping[str, Any]) -> None:
        """Enter an event, once; ``Unavailable`` when its certificate cannot be read."""
        with self._one_at_a_time:
            if event_id not in self._accepted:
                self._enter(event["type"], event["data"])
                self._accepted.add(event_id)

    def _enter(self, kind: str, data: Mapping[str, Any]) -> None:
        invoice = data["idempotency_key"] or data["order_id"]
        if kind == "certificate.stored":
            size = len(self._certificate(data))
            say(f"invoice {invoice}: certificate v{data['version']} {data['path']}, {size} bytes")
        elif kind == "certificate.superseded":
            say(f"invoice {invoice}: certificate v{data['version']} is out of date")
        elif kind == "certificate.failed":
            say(f"invoice {invoice}: there is no certificate yet: {data['reason']}")
        # Whatever else there is, now or in a later release, is accepted and does not matter here.

    def _certificate(self, data: Mapping[str, Any]) -> bytes:
        """Return the PDF an event names, which is whole and the one the event means."""
        path = self._certificates / str(data["path"])
        if not path.resolve().is_relative_to(self._certificates.resolve()):
            raise Unavailable(f"{data['path']} is not in the archive")
        try:
            pdf = path.read_bytes()
        except OSError as error:
            raise Unavailable(f"{data['path']} cannot be read: {error.strerror}") from None
        if hashlib.sha256(pdf).hexdigest() != data["sha256"]:
            raise Unavailable(f"{data['path']} is not the file that the event tells of")
        return pdf


class Receiver(BaseHTTPRequestHandler):
    """Answer ``POST /events``."""

    server: Billing
    timeout = TIMEOUT

    def do_POST(self) -> None:
        """Verify, then enter, then answer."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/events":
            self._answer(HTTPStatus.NOT_FOUND)
        elif not length.isdecimal():
            self._answer(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > LARGEST_EVENT:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            self._answer(self._judge(self.rfile.read(int(length))))

    def _judge(self, body: bytes) -> HTTPStatus:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not any(is_signed(secret, body, headers) for secret in self.server.secrets()):
            complain("refused: not signed by the harvester")
            return HTTPStatus.UNAUTHORIZED
        try:
            self.server.books.accept(headers["webhook-id"], json.loads(body))
        except Unavailable as why:
            complain(f"put off: {why}")
            return HTTPStatus.SERVICE_UNAVAILABLE
        return HTTPStatus.NO_CONTENT

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")  # a body that was not read must not follow
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the class's name
        """Say nothing of requests: what matters of them is printed as an invoice."""


class Billing(ThreadingHTTPServer):
    """The server, with what it knows."""

    daemon_threads = True  # whoever got no answer sends again

    def __init__(self, address: tuple[str, int], secret_file: Path, certificates: Path) -> None:
        super().__init__(address, Receiver)
        self._secret_file = secret_file
        self.books = Books(certificates)

    def secrets(self) -> list[str]:
        """Return the secrets; read anew each time, so one is replaced without a restart."""
        return self._secret_file.read_text("ascii").split()


def is_signed(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    """Tell whether a secret signed this body within the last five minutes (Standard Webhooks)."""
    try:
        Webhook(secret).verify(body, headers)
    except (WebhookVerificationError, ValueError):
        return False
    return True


def say(line: str) -> None:
    """Print a line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def complain(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> None:
    """Serve until SIGTERM, which a first process has to take by itself."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host, _, port = os.environ.get("BILLING_LISTEN", "127.0.0.1:9000").rpartition(":")
    secret_file = Path(os.environ["BILLING_SECRET_FILE"])
    certificates = Path(os.environ["BILLING_CERTIFICATES"])
    with Billing((host, int(port)), secret_file, certificates) as server:
        say(f"billing listens on {host}:{server.server_port}")
        server.serve_forever()


if __name__ == "__main__":
    main()
