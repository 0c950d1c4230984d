"""Signatures of webhooks, against an HMAC computed here, on known and on random input."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.lune.webhooks import NotGenuineError, verify

SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)


def sign(secret: str, timestamp: int, body: bytes) -> bytes:
    return hmac.new(secret.encode(), b"%d.%s" % (timestamp, body), hashlib.sha256).digest()


def test_a_known_signature_is_accepted() -> None:
    known = "fcc94c0e7e0e8caa1eeaa2bb8a5d8d5b1e1f0fd4e0e9b8b7c9a5f2de1f7c0e55"
    digest = sign("secret", 1, b"{}")
    signed = verify(
        [f"timestamp=1,organisation=org,v1={known},v1={digest.hex()}"], b"{}", ["secret"]
    )
    assert (signed.timestamp, signed.organisation) == (1, "org")


def test_the_older_form_of_the_header_names_an_account_and_no_organisation() -> None:
    digest = sign("secret", 1, b"{}")
    assert verify([f"timestamp=1,account=a,v1={digest.hex()}"], b"{}", ["secret"]) is not None


@given(SECRETS, st.integers(0, 10**12 - 1), st.binary(max_size=200), st.booleans())
def test_what_is_signed_is_accepted_and_what_differs_is_not(
    secret: str, timestamp: int, body: bytes, in_hex: bool
) -> None:
    digest = sign(secret, timestamp, body)
    shown = digest.hex() if in_hex else base64.b64encode(digest).decode()
    header = f"timestamp={timestamp},v1={shown}"
    assert verify([header], body, ["another", secret]).timestamp == timestamp
    for wrong_body, secrets in ((body + b" ", [secret]), (body, [secret + "x"]), (body, [])):
        with pytest.raises(NotGenuineError):
            verify([header], wrong_body, secrets)


@given(st.lists(st.text(max_size=300), max_size=3), st.binary(max_size=50))
def test_no_header_breaks_the_parser(headers: list[str], body: bytes) -> None:
    with pytest.raises(NotGenuineError):
        verify(headers, body, ["secret"])


@given(st.text(alphabet="timestamporganisationv1=,0123456789abcdef \t", max_size=400))
def test_no_text_made_of_the_headers_own_parts_is_genuine(header: str) -> None:
    with pytest.raises(NotGenuineError):
        verify([header], b"body", ["secret"])
