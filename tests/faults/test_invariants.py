"""The invariants can fail: each break that is planted by hand is named."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.canaries import encodings
from tests.faults.invariants import BrokenError, check_invariants
from tests.faults.scene import PRIVATE, Scene

Plant = Callable[[Scene], None]


def sql(statement: str) -> Plant:
    def plant(scene: Scene) -> None:
        with closing(sqlite3.connect(scene.home.ledger)) as connection, connection:
            # The schema refuses most of this; a damaged disk does not ask it.
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(statement)

    return plant


def in_the_log(text: str) -> Plant:
    return lambda scene: scene.keep(text)


def in_the_archive(name: str, data: bytes) -> Plant:
    def plant(scene: Scene) -> None:
        path = scene.home.archive / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)

    return plant


def rewrite_it(scene: Scene) -> None:
    [name] = scene.home.files()
    path = scene.home.archive / name
    path.write_bytes(path.read_bytes().replace(b"Retirement", b"retirement") + b"\n")


def expose_it(scene: Scene) -> None:
    [name] = scene.home.files()
    (scene.home.archive / name).chmod(0o644)


def lose_it(scene: Scene) -> None:
    [name] = scene.home.files()
    (scene.home.archive / name).unlink()


def write_the_key_down(scene: Scene) -> None:
    (scene.home.folder / "notes").write_bytes(b"hex: " + scene.lune.key.encode().hex().encode())


def forget_what_was_served(scene: Scene) -> None:
    scene.proxy.served.clear()


def crowd_a_second(scene: Scene) -> None:
    scene.proxy.requests.extend(scene.proxy.requests[:1] * 1001)


BREAKS: list[tuple[str, Plant]] = [
    ("I1", in_the_archive("acct/2026-01/STRANGER.pdf", b"%PDF-1.7 whole %%EOF")),
    ("I1", in_the_archive("acct/2026-01/HALF.pdf", b"%PDF-1.7 half")),
    ("I2", lose_it),
    ("I2", rewrite_it),
    ("I2", expose_it),
    ("I5", in_the_archive(".incoming/left.part", b"x")),
    ("I7", sql("UPDATE transitions SET seq = seq + 1 WHERE order_key = 1")),
    ("I7", sql("UPDATE orders SET status = 'paid' WHERE status = 'complete'")),
    ("I7", forget_what_was_served),
    ("I11", sql("UPDATE orders SET next_check_at = NULL WHERE status = 'placed'")),
    ("I11", sql("UPDATE orders SET next_check_at = 9e18 WHERE status = 'placed'")),
    ("I12", sql("UPDATE accounts SET id = 'other' || key")),
    ("I13", crowd_a_second),
    ("I18", write_the_key_down),
    ("I19", in_the_log(f'{{"event": "{PRIVATE}"}}\n')),
    ("I19", in_the_log('{"event": "torn\n')),
    ("I19", in_the_log('{"event": "colour \x1b[31m"}\n')),
    ("I19", in_the_log("x" * 9000)),
]


@pytest.mark.parametrize(("invariant", "plant"), BREAKS)
async def test_a_planted_break_is_found(scene: Scene, invariant: str, plant: Plant) -> None:
    scene.order("complete")
    scene.order("placed")
    await scene.drain()
    await check_invariants(scene)
    plant(scene)
    with pytest.raises(BrokenError) as broken:
        await check_invariants(scene)
    assert f"{invariant} " in str(broken.value)
    for number in range(1, 20):
        scene.excuse(f"I{number}", "planted above")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM transitions WHERE seq = 1",
        "UPDATE moves SET from_status = 'paid'",
        "UPDATE moves SET to_status = 'paid'",
        "UPDATE orders SET next_check_at = NULL",
        "UPDATE orders SET certificate_state = NULL WHERE status = 'complete'",
        "DELETE FROM certificates",
        "UPDATE certificates SET version = 2",
    ],
)
async def test_verify_names_a_ledger_that_contradicts_itself(scene: Scene, statement: str) -> None:
    order = scene.order("complete")
    scene.order("placed")
    await scene.drain()
    assert (await scene.command("verify")).code == 0
    sql(statement)(scene)
    ran = await scene.command("verify", "--json")
    assert ran.code == 1
    assert ran.document()["ledger"]
    assert order.id in ran.out or "placed" in statement or "next_check_at" in statement
    for number in range(1, 20):
        scene.excuse(f"I{number}", "planted above")


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_a_secret_inside_of_other_base64_is_found(before: str) -> None:
    text = base64.b64encode(f"{before}the-secret-of-the-test and more".encode())
    assert any(form in text for form in encodings("the-secret-of-the-test"))
