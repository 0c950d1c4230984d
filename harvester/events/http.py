"""Send events by HTTP: signed as Standard Webhooks says, to public addresses unless allowed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from harvester.config.secrets import Secret
from harvester.domain.deliveries import DeliveryFailure
from harvester.domain.errors import ConfigurationError
from harvester.domain.events import MEDIA_TYPE, Event, event_text
from harvester.domain.urls import is_public, literal_address
from harvester.events.signing import read_signer

_LARGEST_ANSWER: Final = 4096
_GONE: Final = 410
_OF_EVENT: Final = frozenset({400, 406, 409, 413, 415, 422})
"""What a receiver answers that is well, and rejects what it was sent (RFC 9110)."""
_PRIVATE: Final = "the host is a private address; allow_private = true allows it"


class _PrivateAddressError(OSError):
    """A name stands for addresses that may not be sent to, and for no other."""


class PublicResolver(AbstractResolver):
    """Look names up and leave out every address that is not public.

    Checked where the connection is made, so that a name cannot change between look and leap.
    """

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the host's public addresses; ``OSError`` when it has none."""
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if is_public(one["host"])]
        if found and not public:
            raise _PrivateAddressError
        return public

    async def close(self) -> None:
        """Close the resolver behind."""
        await self._resolver.close()


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """What an HTTP sender may be made with.

    ``timeout`` is for the whole of one attempt, in seconds, looking the name up included.
    """

    allow_private: bool = False
    timeout: float = 10.0
    width: int = 4
    agent: str = "lune-harvester"
    resolver: AbstractResolver | None = None


class HttpSender:
    """One receiver's URL. Each of ``secrets`` signs, read anew each time.

    No redirect is followed, no proxy or cookie used, no answer's body read; 2xx means accepted. The
    URL may hold a password of the receiver's, so no message shows it.
    """

    def __init__(
        self,
        url: str,
        secrets: Sequence[Secret],
        clock: Callable[[], datetime],
        options: SenderOptions | None = None,
    ) -> None:
        self._url = url
        self._secrets = secrets
        self._clock = clock
        self._options = options or SenderOptions()
        self._session: aiohttp.ClientSession | None = None

    async def send(self, event: Event) -> DeliveryFailure | None:
        """Post the event, once; None when the answer is 2xx, else why it was not accepted."""
        # A literal address is never looked up, so the resolver does not see it.
        address = literal_address(self._url)
        if address is not None and not self._options.allow_private and not is_public(address):
            return DeliveryFailure(_PRIVATE)
        body = event_text(event)
        try:
            return _judged(await self._post(self._headers(event, body), body.encode()))
        except ConfigurationError as error:
            return DeliveryFailure(str(error))
        except TimeoutError:
            return DeliveryFailure(f"no answer within {self._options.timeout:g} s")
        except (aiohttp.ClientError, ValueError) as error:
            return DeliveryFailure(_told(error))

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, headers: Mapping[str, str], body: bytes) -> int:
        self._session = self._session or self._open()
        async with self._session.post(
            self._url, data=body, headers=headers, allow_redirects=False
        ) as answer:
            return answer.status

    def _open(self) -> aiohttp.ClientSession:
        options = self._options
        resolver = options.resolver or aiohttp.ThreadedResolver()
        if not options.allow_private:
            resolver = PublicResolver(resolver)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=options.width, resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=options.timeout),
            headers={"User-Agent": options.agent, "Accept-Encoding": "identity"},
            read_bufsize=_LARGEST_ANSWER,
            auto_decompress=False,
            trust_env=False,
        )

    def _headers(self, event: Event, body: str) -> dict[str, str]:
        at = self._clock()
        signed = [
            read_signer(secret).sign(msg_id=event.id, timestamp=at, data=body)
            for secret in self._secrets
        ]
        return {
            "Content-Type": MEDIA_TYPE,
            "webhook-id": event.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signed),
        }


def _told(error: Exception) -> str:
    """Say what went wrong without the error's own words, which show the URL."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return f"no answer that could be read: {type(error).__name__}"
    if isinstance(error.os_error, _PrivateAddressError):
        return _PRIVATE
    return f"no connection: {error.os_error.strerror or type(error).__name__}"


def _judged(status: int) -> DeliveryFailure | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return DeliveryFailure(f"status {status}: redirects are not followed")
    return DeliveryFailure(f"status {status}", gone=status == _GONE, of_event=status in _OF_EVENT)
