"""Where the key may go: one scheme, host and port, fixed at the start."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote, urlencode

from yarl import URL

from harvester.domain.errors import ConfigurationError
from harvester.domain.urls import check_base_url

_KEY: Final = re.compile(r"[!-~]+")


def segment(text: str) -> str:
    """Percent-encode text into exactly one segment of a path; ``ValueError`` when it is empty."""
    if not text:
        raise ValueError("empty text cannot be part of a path")
    if text in {".", ".."}:
        return text.replace(".", "%2E")  # bare, they would be read as a way up
    return quote(text, safe="")


class Origin:
    """Lune's base address together with the API key, the only place that holds it.

    ``base_url`` is https, or http on a loopback host. ``key`` returns the API key and is called
    again by ``reread_key``. Both are checked: ``ConfigurationError``, which never quotes the key.
    """

    def __init__(self, base_url: str, key: Callable[[], str]) -> None:
        self._base = _parse_base(base_url)
        self._read_key = key
        # Earlier keys stay hidden too: an answer to one may still come after a change.
        self._keys: list[str] = []
        self.reread_key()

    def __repr__(self) -> str:
        return f"Origin({str(self._base)!r}, <secret>)"

    def reread_key(self) -> None:
        """Ask for the key again and use what comes; ``ConfigurationError`` when it is no key."""
        key = self._read_key().strip()
        if not _KEY.fullmatch(key):
            raise ConfigurationError("the API key is empty or has characters no key has")
        if key in self._keys:
            self._keys.remove(key)
        self._keys.append(key)

    def url(self, path: str, query: Mapping[str, str] | None = None) -> URL:
        """Return the address of an encoded path below the base, taken as it is."""
        text = f"{self._base}{path}"
        if query:
            text += f"?{urlencode(query, quote_via=quote, safe='')}"
        return URL(text, encoded=True)

    def authorization(self, url: URL) -> dict[str, str]:
        """Return the header with the key, for a URL of this origin and for no other."""
        if url.origin() != self._base.origin():
            raise AssertionError("the key must not leave its origin")
        return {"Authorization": f"Bearer {self._keys[-1]}"}

    def redact(self, text: str) -> str:
        """Replace every key there ever was by ``***``."""
        for key in self._keys:
            text = text.replace(key, "***")
        return text

    def redact_bytes(self, data: bytes) -> bytes:
        """Replace every key there ever was by ``***``."""
        for key in self._keys:
            data = data.replace(key.encode(), b"***")
        return data


def _parse_base(base_url: str) -> URL:
    try:
        check_base_url(base_url)
        url = URL(base_url)
    except ValueError as error:
        raise ConfigurationError(f"base_url: {error}") from None
    return URL(f"{url.origin()}{url.raw_path.rstrip('/')}", encoded=True)
