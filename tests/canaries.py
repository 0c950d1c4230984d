"""Secrets that no test may find again: what they are, where they may be, and how they are found.

Every sandbox takes ``KEY`` unless a test chose another, so that key goes through nearly all of the
suite. A test that needs a webhook secret or a database password uses these.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from harvester.sandbox import SandboxOptions
from tests.integration.order_desk import KEY as DESK_KEY

KEY = SandboxOptions().key
WEBHOOK_SECRET = "whsec_Y2FuYXJ5LXdlYmhvb2stc2VjcmV0LTVkMGI="
DATABASE_PASSWORD = "canary-password/4b+1c9?:@"

SECRETS = {
    "the API key": KEY,
    "the API key of the order desk": DESK_KEY,
    "the webhook secret": WEBHOOK_SECRET,
    "the database password": DATABASE_PASSWORD,
}

KEPT_IN = {
    "lune_api_key": "the file a key is read from",
    "webhook_secret": "the file a webhook secret is read from",
    "options.py": "the sandbox's own source, where a test copies the package",
    "sandbox.py": "the same, the command",
}
"""Names of files that hold a secret on purpose, and why."""

SHOWN_BY = {
    "acceptance/test_demo.py::"
    "test_the_sandbox_prints_a_configuration_that_works_when_pasted": "the sandbox's own key",
    "integration/test_ledger_upgrade.py::"
    "test_the_wheel_has_the_migrations_and_makes_a_ledger_with_them": "the sandbox's own source",
    "faults/test_invariants.py::test_a_planted_break_is_found": "one of the breaks is a key",
    "faults/test_hostile_secrets.py::test_the_search_after_every_test_can_fail": "it plants them",
}
"""Tests (``file::function`` below ``tests``) of what shows a key on purpose, and why."""

_LARGEST = 32 * 2**20
"""Bytes of a file that are looked through; those that fill a disk are longer."""


def encodings(secret: str) -> set[bytes]:
    """Return a secret raw, as base64 (at any alignment), hex, URL- and JSON-escaped."""
    raw = secret.encode()
    found = {raw, raw.hex().encode(), quote(secret, safe="").encode()}
    found.add(json.dumps(secret)[1:-1].encode())
    for shift in range(3):
        # What a longer text's base64 has in common, whatever stands before and after the secret.
        text = base64.b64encode(b"\0" * shift + raw)
        part = text[(0, 2, 3)[shift] : len(text) - 4]
        found |= {part, part.replace(b"+", b"-").replace(b"/", b"_")}
    return found


_FORMS = {form: name for name, secret in SECRETS.items() for form in encodings(secret)}
_heard: list[str] = []


def hear(*texts: str) -> None:
    """Have texts that went through a pipe looked through at the end of the running test."""
    _heard.extend(texts)


def take_heard() -> list[str]:
    """Return what was heard since the last time, and forget it."""
    taken = list(_heard)
    _heard.clear()
    return taken


def shown_in(data: bytes) -> Iterator[str]:
    """Yield the name of each secret that is in the bytes, in whatever encoding."""
    yield from sorted({name for form, name in _FORMS.items() if form in data})


def shown(folder: Path | None, texts: Iterable[str]) -> Iterator[str]:
    """Yield a line for each secret in a file below the folder, in its name, or in a text."""
    for path in [] if folder is None else sorted(folder.rglob("*")):
        data = bytes(path.relative_to(folder or path))
        if path.is_file() and not path.is_symlink() and path.name not in KEPT_IN:
            with path.open("rb") as file:
                data += b"\n" + file.read(_LARGEST)
        for name in shown_in(data):
            yield f"{path} shows {name}"
    for text in texts:
        for name in shown_in(text.encode("utf-8", "surrogateescape")):
            yield f"what was printed or logged shows {name}"
