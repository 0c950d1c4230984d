"""Where the key may go, and that it is shown nowhere."""

from __future__ import annotations

import pytest
from yarl import URL

from harvester.lune.origin import Origin


@pytest.mark.parametrize(
    "url",
    [
        "http://api.lune.co/v1/orders",
        "https://api.lune.co:8443/v1/orders",
        "https://api.lune.co.example.com/v1/orders",
        "https://example.com/v1/orders",
    ],
)
def test_the_key_leaves_for_its_origin_only(url: str) -> None:
    origin = Origin("https://api.lune.co/v1", lambda: "key")
    assert origin.authorization(origin.url("/orders")) == {"Authorization": "Bearer key"}
    with pytest.raises(AssertionError, match="origin"):
        origin.authorization(URL(url))


def test_keys_of_before_stay_hidden() -> None:
    keys = iter(["first-key\n", "second-key", "first-key"])
    origin = Origin("https://api.lune.co/v1", lambda: next(keys))
    origin.reread_key()
    assert origin.authorization(origin.url("/"))["Authorization"] == "Bearer second-key"
    assert origin.redact("first-key, second-key") == "***, ***"
    origin.reread_key()
    assert origin.authorization(origin.url("/"))["Authorization"] == "Bearer first-key"
    assert "key" not in repr(origin)
