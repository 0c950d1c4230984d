"""What the listener answers when it cannot do what was asked: RFC 9457 problems.

Nothing of a request is quoted back, and an answer to an unknown path never depends on it.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from harvester.context import Limits
from harvester.domain.errors import (
    HarvesterError,
    KeyRefused,
    LedgerUnavailable,
    LuneError,
    StorageUnavailable,
)
from harvester.web.local_socket import error_members

log = structlog.get_logger()

LARGEST_BODY: Final = 2**20
"""Bytes of a request's body, unless a handler states another cap."""

LIMITS: Final = web.AppKey("limits", Limits)
"""Where the application keeps its limits."""


class Problem(Exception):
    """A request that is not answered as asked; ``detail`` is shown, ``more`` are extra members."""

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.more = more


def problem(error: Problem) -> web.Response:
    """Write a problem as an answer."""
    body = {"type": "about:blank", "title": http.HTTPStatus(error.status).phrase}
    body |= {"status": error.status} | error.more
    if error.detail is not None:
        body["detail"] = error.detail
    return web.Response(
        status=error.status,
        headers=error.headers,
        body=json.dumps(body, ensure_ascii=False).encode(),
        content_type="application/problem+json",
    )


@web.middleware
async def faults_as_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every fault with a problem; a fault of ours is logged and not described."""
    try:
        return await handler(request)
    except Problem as error:
        return problem(error)
    except web.HTTPException as error:
        allowed = error.headers.get("Allow")
        return problem(Problem(error.status, headers={"Allow": allowed} if allowed else None))
    except HarvesterError as error:
        return problem(Problem(_status_of(error), str(error), **error_members(error)))
    except ConnectionError:
        raise  # whoever asked went away
    except Exception:
        log.exception("request failed unexpectedly", method=request.method)
        return problem(Problem(500))


async def read_json(request: web.Request, largest: int = LARGEST_BODY) -> dict[str, Any]:
    """Return the object of a JSON body; a ``Problem`` otherwise."""
    if request.content_type != "application/json":
        raise Problem(415, "send application/json")
    try:
        body = json.loads(await read_body(request, largest))
    except ValueError:
        raise Problem(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Problem(400, "the body is not a JSON object")
    return body


def _status_of(error: HarvesterError) -> int:
    if isinstance(error, (KeyRefused, LedgerUnavailable, StorageUnavailable)):
        return 503
    return 502 if isinstance(error, LuneError) else 500


async def read_body(
    request: web.Request,
    largest: int = LARGEST_BODY,
    hold: Callable[[int], None] = lambda _: None,
) -> bytes:
    """Return the body, which has ten seconds to arrive; a 413 or 408 ``Problem`` otherwise.

    The bytes are as they came: nothing is decompressed. ``hold`` is told how many there are so
    far, and may raise a ``Problem`` of its own.
    """
    too_large = Problem(413, f"a body has at most {largest} bytes")
    if (request.content_length or 0) > largest:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(request.config_dict[LIMITS].request_body):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > largest:
                    raise too_large
                hold(len(body))
    except TimeoutError:
        raise Problem(408, "the body took too long to arrive") from None
    except web.RequestPayloadError:
        raise Problem(400, "the body was cut short") from None
    except RuntimeError:
        if request.transport is None:  # the library's word for it, before a body is read
            raise ConnectionResetError("whoever asked went away") from None
        raise
    return bytes(body)
