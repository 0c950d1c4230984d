"""Strict JSON: bytes that two readers could understand differently are refused.

The messages of :class:`PayloadError` name rules and fields, never served values, so they may be
logged.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final, NoReturn

# Lune's own objects are five levels deep; this keeps us far from the interpreter's own limit.
_DEEPEST: Final = 64


class PayloadError(ValueError):
    """Served bytes are not what the API serves."""


def load(data: bytes) -> Any:
    """Parse UTF-8 JSON, numbers with a fraction or exponent as Decimal.

    Refuses byte order marks, ``NaN`` and infinities, repeated keys, integers of more digits than
    the interpreter takes and nesting beyond its limit, with ``PayloadError``.
    """
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_object,
            parse_float=_decimal,
            parse_constant=_refuse_constant,
        )
    except PayloadError:
        raise
    except UnicodeDecodeError:
        raise PayloadError("not UTF-8") from None
    except RecursionError:
        raise PayloadError("JSON nested too deep") from None
    except ValueError:
        raise PayloadError("not JSON") from None


def settle(value: Any, depth: int = 0) -> Any:
    """Return a parsed value as it can be stored: Decimals as their text, every string encodable.

    Refuses NUL and lone surrogates, which databases and files do not take, and deep nesting.
    """
    kind = type(value)
    if kind is str:
        return _storable(value)
    if kind is dict or kind is list:
        if depth >= _DEEPEST:
            raise PayloadError("nested too deep")
        if kind is list:
            return [settle(item, depth + 1) for item in value]
        return {
            # Nearly every leaf is plain text; a call for each would double the time of a page.
            _storable(key): item
            if item is None or (type(item) is str and item.isascii() and "\0" not in item)
            else settle(item, depth + 1)
            for key, item in value.items()
        }
    return str(value) if kind is Decimal else value


def is_line(text: object, longest: int) -> bool:
    """Tell whether this is printable text of 1 to ``longest`` characters."""
    return isinstance(text, str) and 0 < len(text) <= longest and text.isprintable()


def _storable(text: str) -> str:
    if "\0" in text:
        raise PayloadError("NUL in a text")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise PayloadError("half a surrogate pair in a text") from None
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise PayloadError("JSON with a repeated key")
    return fields


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError:
        raise PayloadError("JSON number out of range") from None


def _refuse_constant(_name: str) -> NoReturn:
    raise PayloadError("JSON with NaN or an infinity")
