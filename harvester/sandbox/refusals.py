"""How the API says no: a status with Lune's error body, plain text, or no body at all."""

from __future__ import annotations

import json

from aiohttp import web


class ApiError(Exception):
    """A refused request.

    With ``code`` the body is Lune's error object; with a message alone it is plain text; with
    neither there is none (Lune's errors page: 404 and 500 have nothing to add).
    """

    def __init__(self, status: int, code: str | None = None, message: str | None = None) -> None:
        super().__init__(f"{status} {code or message or 'without a body'}")
        self.status = status
        self.code = code
        self.message = message

    def response(self) -> web.Response:
        """Return the answer that says this."""
        if self.code is not None:
            error = {"error_code": self.code, "message": self.message or ""}
            body = json.dumps({"error": error, "errors": [error]})
            return web.Response(status=self.status, text=body, content_type="application/json")
        return web.Response(status=self.status, text=self.message)


def not_found() -> ApiError:
    """Return the refusal of something that is not there, or is another account's."""
    return ApiError(404)


def invalid(where: str, rule: str) -> ApiError:
    """Return the refusal of input that breaks the schema, worded as Lune's errors page does."""
    return ApiError(
        400,
        "validation_error",
        f"Provided data does not match the defined schema.: {where} {rule}",
    )
