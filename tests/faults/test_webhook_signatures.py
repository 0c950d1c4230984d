"""Whose webhook it is: what no secret of ours signed, byte for byte, changes nothing."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harvester.lune import webhooks as signatures
from harvester.lune.webhooks import NotGenuineError, verify
from tests.acceptance.harness import Home
from tests.faults.catalogue import fault
from tests.faults.scene import Scene
from tests.faults.webhook_client import SECRET, body_of, event, header, mac, webhook_client

BODY = body_of(event("order1"))
GOOD = header(BODY)
AT = GOOD.partition(",")[0].removeprefix("timestamp=")
SIGNED = mac(BODY, AT).hex()

GARBLED = {
    "empty": "",
    "no signature": f"timestamp={AT}",
    "no timestamp": f"v1={SIGNED}",
    "two timestamps": f"timestamp={AT},timestamp={AT},v1={SIGNED}",
    "two organisations": f"timestamp={AT},organisation=a,organisation=b,v1={SIGNED}",
    "another version": f"timestamp={AT},v2={SIGNED}",
    "a signature cut short": f"timestamp={AT},v1={SIGNED[:-2]}",
    "no hex and no base64": f"timestamp={AT},v1={'x' * 64}",
    "nothing but commas": "," * 100,
    "the ninth signature": f"timestamp={AT}," + f"v1={'0' * 64}," * 8 + f"v1={SIGNED}",
    "an endless row of signatures": f"timestamp={AT}," + f"v1={'0' * 64}," * 100,
}


@pytest.mark.parametrize("text", GARBLED.values(), ids=GARBLED)
@fault("W1")
async def test_a_garbled_header_is_refused_without_a_word_about_why(
    scene: Scene, text: str
) -> None:
    async with webhook_client(scene) as client:
        refused = await client.ask(BODY, {"Lune-HMAC": text})
        assert refused == await client.ask(BODY, {})
        assert refused[0] == 401
        assert await client.rows("SELECT * FROM webhook_events") == []


@fault("W1")
def test_a_header_that_is_not_ascii_or_comes_twice_is_refused() -> None:
    for headers in ([f"timestamp={AT},v1=é"], [f"{GOOD},é=1"], [GOOD, GOOD], []):
        with pytest.raises(NotGenuineError):
            verify(headers, BODY, [SECRET])


@pytest.mark.parametrize("form", ["hex", "base64"])
@fault("W2")
async def test_hex_and_base64_are_both_read_padding_included(scene: Scene, form: str) -> None:
    async with webhook_client(scene) as client:
        assert await client.post(BODY, form=form) == 200


@fault("W2")
def test_every_way_to_write_thirty_two_bytes_is_the_same_signature() -> None:
    padded = header(BODY, at=int(AT), form="base64")
    assert padded.endswith("=")
    upper = f"timestamp={AT},v1={SIGNED.upper()}"
    url_safe = padded.replace("+", "-").replace("/", "_")
    for text in (GOOD, padded, padded.rstrip("="), upper, url_safe):
        assert verify([text], BODY, [SECRET]).timestamp == int(AT)


@fault("W3")
async def test_the_bytes_as_they_came_are_what_is_signed(scene: Scene) -> None:
    spaced = json.dumps(json.loads(BODY), indent=1).encode()
    async with webhook_client(scene) as client:
        assert await client.post(spaced, {"Lune-HMAC": GOOD}) == 401
        assert await client.post(BODY + b"\n", {"Lune-HMAC": GOOD}) == 401
        assert await client.post(spaced) == 200


@fault("W4", "C6")
async def test_the_timestamp_is_part_of_what_is_signed(scene: Scene) -> None:
    later = GOOD.replace(AT, str(int(AT) + 1))
    async with webhook_client(scene) as client:
        assert await client.post(BODY, {"Lune-HMAC": later}) == 401
        assert await client.post(BODY, {"Lune-HMAC": GOOD}) == 200


@pytest.mark.parametrize(
    "text",
    [
        "\uff11\uff12\uff13",
        "12_3",
        "-1",
        "+5",
        " 5",
        "5.0",
        "0x10",
        "1e9",
        str(2**63),
        "",
        "9" * 13,
    ],
)
@fault("W4", "C6")
def test_a_timestamp_is_one_to_twelve_plain_digits(text: str) -> None:
    signed = f"timestamp={text},v1={mac(BODY, text).hex()}"
    with pytest.raises(NotGenuineError):
        verify([signed], BODY, [SECRET])


@pytest.mark.parametrize(("off", "stale"), [(-301, True), (-299, False), (299, False), (301, True)])
@fault("C6")
def test_a_signature_is_stale_after_five_minutes_and_as_long_before(off: int, stale: bool) -> None:
    text = header(BODY, at=1_800_000_000 + off)
    assert verify([text], BODY, [SECRET]).is_stale(1_800_000_000) is stale


@fault("W16")
async def test_several_secrets_are_good_at_once(scene: Scene) -> None:
    async with webhook_client(scene, ["the-newest", SECRET]) as client:
        assert await client.post(body_of(event("o", number=1)), secret="the-newest") == 200
        assert await client.post(body_of(event("o", number=2)), secret=SECRET) == 200
        assert await client.post(body_of(event("o", number=3)), secret="an-older-one") == 401
        assert client.webhooks.outcomes["refused"] == 1


@fault("W21")
def test_every_secret_is_tried_whichever_matches() -> None:
    tried = []

    def secrets() -> Iterator[str]:
        for secret in ("first", SECRET, "last"):
            tried.append(secret)
            yield secret

    verify([GOOD], BODY, secrets())
    assert tried == ["first", SECRET, "last"]


@fault("W21")
def test_digests_are_compared_by_the_function_made_for_secrets_alone() -> None:
    tree = ast.parse(Path(signatures.__file__).read_text("utf-8"))
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert calls.count("hmac.compare_digest") == 1
    plain = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.Eq | ast.NotEq | ast.In) for operator in node.ops)
        and "digest" in ast.unparse(node)
    ]
    assert plain == []


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
@fault("W22")
async def test_an_empty_secret_ends_the_daemon_at_its_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "webhook_secret"
    file.write_text(text)
    file.chmod(0o600)
    home = Home(tmp_path, http__listen="127.0.0.1:0", webhook__secret_file=str(file))
    home.configure(lune__api_key="a-key", lune__base_url="http://127.0.0.1:9/v1")
    ran = await home.run("run")
    assert ran.code == 78
    assert f"webhook.secret_file {file}: is empty" in ran.err
