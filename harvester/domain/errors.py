"""Every error the harvester raises on purpose, made once, where the fault is known.

The tree; an error marked with * may go away by asking again::

    HarvesterError
    +-- ConfigurationError     what the operator wrote cannot work
    +-- LedgerHeld             another harvester holds the ledger
    +-- LedgerUnavailable *    the database cannot be written just now (disk full, locked, gone)
    +-- LedgerDamaged          the database is not what it should be; a person must mend it
    |   +-- LedgerReplaced     its file was deleted or replaced while it was open
    +-- StorageUnavailable *   the archive cannot take a file just now (full, read-only, gone)
    +-- CertificateRejected *  an answer for a certificate was not a whole PDF
    +-- KeyTaken               an idempotency key belongs to another purchase
    +-- OutcomeUnknown *       nobody knows yet whether Lune took an order
    +-- LuneError              Lune, or something in front of it, did not give what was asked
        +-- Unreachable *      no connection, no TLS, no answer in time, or an answer cut short
        +-- RateLimited *      429
        +-- ServerFault *      5xx
        +-- UnexpectedAnswer * an answer that is not what the API serves: type, size, shape
        +-- EdgeBlocked *      403 without an error code: something in front of Lune refused
        +-- Redirected         3xx; never followed
        +-- KeyRefused         401 for the key itself: no account answers any more
        +-- AccountRefused     this one account is refused; others may answer
        +-- NotFound           404
        +-- RequestRefused     any other coded 4xx: the request is wrong, not the moment
"""

from __future__ import annotations

from typing import ClassVar


class HarvesterError(Exception):
    """The root of the tree; ``retryable`` says whether asking again can help."""

    retryable: ClassVar[bool] = False


class ConfigurationError(HarvesterError):
    """The configuration, the key's mode or the set-up cannot work; ``problems`` has a line each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class LedgerHeld(HarvesterError):
    """Another harvester holds the ledger's lock; the message names it."""


class LedgerUnavailable(HarvesterError):
    """The ledger cannot be used just now; what was tried did not happen and may be tried again."""

    retryable = True


class LedgerDamaged(HarvesterError):
    """The ledger is damaged or not a ledger; it is left as it is."""


class LedgerReplaced(LedgerDamaged):
    """The ledger is not the file any more that was opened; going on would write into the void."""


class StorageUnavailable(HarvesterError):
    """The archive cannot take files just now; no order is at fault."""

    retryable = True


class CertificateRejected(HarvesterError):
    """What was served as a certificate is not a whole PDF; the message is the reason."""

    retryable = True


class KeyTaken(HarvesterError):
    """The idempotency key was used for another purchase; nothing was sent."""


class OutcomeUnknown(HarvesterError):
    """Lune may or may not have taken the order; its key tells, and the message says how."""

    retryable = True


class LuneError(HarvesterError):
    """A request to Lune that did not give what was asked.

    ``path`` is the URL path without its query; ``status`` is the HTTP status, None when no answer
    came; ``code`` is Lune's ``error_code``; ``retry_after`` is in seconds; ``cf_ray`` identifies
    the request to Lune's support.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str,
        path: str,
        status: int | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        cf_ray: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.method = method
        self.path = path
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.cf_ray = cf_ray

    def __str__(self) -> str:
        details = [f"{self.method} {self.path}"]
        if self.status is not None:
            details.append(f"status {self.status}")
        if self.code:
            details.append(self.code)
        if self.cf_ray:
            details.append(f"CF-Ray {self.cf_ray}")
        return f"{self.message} ({', '.join(details)})"


class Unreachable(LuneError):
    """No connection, no valid TLS, no answer before the deadline, or an answer cut short."""

    retryable = True


class RateLimited(LuneError):
    """429: over the key's requests a second."""

    retryable = True


class ServerFault(LuneError):
    """5xx: safe to ask again (Lune errors guide)."""

    retryable = True


class UnexpectedAnswer(LuneError):
    """A 2xx whose type, size or shape is not what the API serves."""

    retryable = True


class EdgeBlocked(LuneError):
    """403 without Lune's error body: refused by something in front of the API, not by it."""

    retryable = True


class Redirected(LuneError):
    """3xx: not followed, since the key would leave its origin."""


class KeyRefused(LuneError):
    """The key itself is refused; nothing can be asked until it is mended."""


class AccountRefused(LuneError):
    """This account is suspended, out of the key's scope or unknown to it; others go on."""


class NotFound(LuneError):
    """404: no such thing, or it belongs to another account."""


class RequestRefused(LuneError):
    """A coded refusal of this one request, not of the moment or the key."""
