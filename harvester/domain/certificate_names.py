"""How certificates are named: the operator's template, and paths that stay below the root."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from harvester.domain.errors import ConfigurationError
from harvester.domain.orders import is_identifier

DEFAULT_LAYOUT = "{account_id}/{created:%Y-%m}/{order_id}"
QUARANTINE = "quarantine"
"""The folder below the root for what is not a certificate; no layout may start with it."""

_ACCOUNT = "{account_id}"
_ORDER = "{order_id}"
_CREATED = re.compile(r"\{created:([^{}]*)\}")
_TOKEN = re.compile(r"\{account_id\}|\{order_id\}|\{created:[^{}]*\}|[^{}]+|[{}]")
_FOREIGN = re.compile(r"[^A-Za-z0-9_.=/-]")
_DIRECTIVE = re.compile(r"%(.?)", re.DOTALL)
_DIRECTIVES = "YmdHjVG"
_COMPONENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.=-]*[A-Za-z0-9_=-])?")
_AMBIGUOUS = re.compile(r"_id\}[^.]*\{(?:account|order)_id\}")
_LONGEST_NAME = 255
_LONGEST_ID = "x" * 64
_LONGEST_SUFFIX = ".interim.v9999999999.pdf"
_SOME_DAY = datetime(2026, 10, 10, 10, tzinfo=UTC)


class CertificateNames:
    """A checked template for the paths of certificates, such as ``DEFAULT_LAYOUT``.

    It knows ``{account_id}``, ``{order_id}`` and ``{created:FORMAT}`` with FORMAT made of the
    strftime directives that give digits only (Y m d H j V G), in UTC. Nothing else is
    interpreted. Raises ``ConfigurationError`` with every rule the template breaks.
    """

    def __init__(self, template: str) -> None:
        problems = [f"the layout {template!r} {rule}" for rule in _broken_rules(template)]
        if problems:
            raise ConfigurationError(*problems)
        self.template = template
        self._tokens = tuple(_TOKEN.findall(template))

    def path(
        self,
        account_id: str,
        order_id: str,
        created_at: datetime,
        version: int,
        *,
        interim: bool = False,
    ) -> str:
        """Return the path of a certificate version, such as ``acct/2026-01/ORDER.v2.pdf``.

        Version 1 has no number. Two certificates never share one: ids hold no dots, so what
        follows the order id (``.interim``, ``.v2``) cannot be part of one, and ids in the same
        component are kept apart by a dot. (A template without ``{account_id}`` trusts that order
        ids are unique over accounts.) Raises ValueError for an id that is no identifier, a version
        below 1, a time without a zone and an account that is called like the archive's own folder.
        """
        if not (is_identifier(account_id) and is_identifier(order_id)):
            raise ValueError("an id is not safe to put in a path")
        if version < 1:
            raise ValueError("certificate versions count from 1")
        if created_at.tzinfo is None:
            raise ValueError("created_at has no time zone")
        name = _render(self._tokens, account_id, order_id, created_at.astimezone(UTC))
        name += ".interim" if interim else ""
        name += f".v{version}" if version > 1 else ""
        path = f"{name}.pdf"
        split_path(path)
        return path


def split_path(path: str) -> tuple[tuple[str, ...], str]:
    """Return a path's folders and file name; ValueError unless it is a name below the root.

    Folders and names that start with a dot are the archive's own; so is ``quarantine``.
    """
    parts = tuple(path.split("/"))
    for part in parts:
        if not part or part.startswith(".") or "\0" in part:
            raise ValueError("a path is relative, without empty, dot or hidden components")
        if len(os.fsencode(part)) > _LONGEST_NAME:
            raise ValueError(f"a component of a path has at most {_LONGEST_NAME} bytes")
    if parts[0] == QUARANTINE:
        raise ValueError(f"{QUARANTINE} holds what is not a certificate")
    return parts[:-1], parts[-1]


def is_layout_folder(name: str) -> bool:
    """Tell whether a layout could have named this folder (``lost+found``, say, it could not)."""
    return _COMPONENT.fullmatch(name) is not None


def _render(tokens: tuple[str, ...], account_id: str, order_id: str, created_at: datetime) -> str:
    values = {_ACCOUNT: account_id, _ORDER: order_id}
    return "".join(
        created_at.strftime(created[1])
        if (created := _CREATED.fullmatch(token))
        else values.get(token, token)
        for token in tokens
    )


def _broken_rules(template: str) -> Iterator[str]:
    if not template:
        yield "is empty"
        return
    tokens = tuple(_TOKEN.findall(template))
    if "{" in tokens or "}" in tokens:
        yield f"may hold only {_ACCOUNT}, {_ORDER} and {{created:FORMAT}} in braces"
        return
    broken = tuple(_broken_character_rules(tokens))
    yield from broken or _broken_path_rules(template, tokens)


def _broken_character_rules(tokens: tuple[str, ...]) -> Iterator[str]:
    formats = [match[1] for token in tokens if (match := _CREATED.fullmatch(token))]
    directives = {letter for text in formats for letter in _DIRECTIVE.findall(text)}
    if not all(letter and letter in _DIRECTIVES for letter in directives) or "" in formats:
        known = " ".join(f"%{letter}" for letter in _DIRECTIVES)
        yield f"may use only {known} in {{created:FORMAT}}"
    literals = [token for token in tokens if not token.startswith("{")]
    literals += [_DIRECTIVE.sub("", text) for text in formats]
    if any(_FOREIGN.search(text) for text in literals):
        yield "may hold only letters A-Z a-z, digits and _ - . = / outside its placeholders"


def _broken_path_rules(template: str, tokens: tuple[str, ...]) -> Iterator[str]:
    if template.startswith("/"):
        yield "may not be an absolute path"
    if ".." in template:
        yield "may not hold .."
    if ".pdf" in template.lower():
        yield "may not hold .pdf, which is added"
    if _ORDER not in template.rpartition("/")[2]:
        yield f"must hold {_ORDER} after its last slash, so that every order has its own name"
    if any(_AMBIGUOUS.search(part) for part in template.split("/")):
        yield "must separate two ids by a slash or a dot, or two orders could share a name"
    parts = _render(tokens, _LONGEST_ID, _LONGEST_ID, _SOME_DAY).split("/")
    if not all(_COMPONENT.fullmatch(part) for part in parts):
        yield "must be made of components that start with a letter or digit and do not end in a dot"
    if parts[0] == QUARANTINE:
        yield f"may not start with {QUARANTINE}, which holds what is not a certificate"
    if any(len(part) > _LONGEST_NAME for part in (*parts, parts[-1] + _LONGEST_SUFFIX)):
        yield f"makes a name of over {_LONGEST_NAME} bytes"
