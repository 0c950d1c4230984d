"""Names that lead elsewhere: order ids, layouts, symbolic links, addresses in a payload."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harvester.config.load import load
from harvester.domain.errors import ConfigurationError
from tests.acceptance.harness import Home
from tests.faults.catalogue import fault
from tests.faults.proxy import changed
from tests.faults.scene import Scene
from tests.integration.raw_server import raw_server, saying

HOSTILE_IDS = [
    "../../etc/cron.d/x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "good\n",
    "good\0",
    "x" * 300,
    "full\uff0fwidth",
    "\u202egnp.exe",
    "-rf",
    "_hidden",
    ".incoming",
    "quarantine/x",
    "{0.__class__}",
    "%2e%2e%2fx",
    "CON\u0301",
    "' OR 1=1 --",
]


def every_file(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def relisted(change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> Callable[[bytes], bytes]:
    """Put the first row of a page in place of all of them, as often and as changed as wanted."""

    def rewrite(body: bytes) -> bytes:
        page = json.loads(body)
        page["data"] = change(page["data"][0]) if page["data"] else []
        return json.dumps(page).encode()

    return rewrite


@fault("X1")
async def test_an_order_whose_id_is_no_name_is_rejected_and_gets_no_path(
    scene: Scene, tmp_path: Path
) -> None:
    good = scene.order()
    rows = relisted(lambda row: [{**row, "id": one} for one in (*HOSTILE_IDS, row["id"])])
    scene.proxy.script(changed(rows), "orders", times=2)
    report = await scene.drain()
    assert len(report.swept.rejected) == len(HOSTILE_IDS)
    assert [Path(name).stem for name in scene.home.files()] == [good.id]
    assert [name for name in every_file(tmp_path) if name.endswith(".pdf")] == [
        f"certificates/{name}" for name in scene.home.files()
    ]
    assert {seen.target.rpartition("?")[0] or seen.target for seen in scene.proxy.requests} <= {
        "/v1/accounts/me",
        "/v1/accounts",
        "/v1/accounts/client",
        "/v1/orders",
        f"/v1/orders/{good.id}",
        f"/v1/orders/{good.id}/certificate",
    }


@fault("X1")
async def test_what_a_rejected_id_says_breaks_no_line_of_status(scene: Scene) -> None:
    scene.order()
    rows = relisted(lambda row: [{**row, "id": one} for one in HOSTILE_IDS])
    scene.proxy.script(changed(rows), "orders", times=2)
    await scene.drain()
    scene.proxy.listed = {one for one in scene.proxy.listed if one[1] in HOSTILE_IDS}
    ran = await scene.command("status")
    assert ran.code == 0
    cells = ran.out.replace("\n", "\t").split("\t")
    assert [cell for cell in cells if not cell.isprintable()] == []
    assert len((await scene.command("status", "--json")).document()["rejected_orders"]) == len(
        HOSTILE_IDS
    )


@pytest.mark.parametrize(
    "layout",
    [
        "{order_id.__class__}",
        "{0.__class__.__init__.__globals__}/{order_id}",
        "{{order_id}}",
        "{{ order_id }}",
        "{order_id!r}",
        "{order_id:>1000000000}",
        "{created:%s}/{order_id}",
        "{created:{order_id}}",
        "../{order_id}",
        "a/../../{order_id}",
        "/etc/cron.d/{order_id}",
        "./{order_id}",
        "a//{order_id}",
        ".incoming/{order_id}",
        "quarantine/{order_id}",
        "~/{order_id}",
        "$HOME/{order_id}",
        "`id`/{order_id}",
        "{order_id}\n",
        "{order_id}\0",
        "{account_id}",
        "{account_id}{order_id}",
        "x" * 256 + "/{order_id}",
        "",
    ],
)
@fault("X2")
def test_a_layout_that_is_more_than_its_three_placeholders_is_refused(
    tmp_path: Path, layout: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"storage\.layout"):
        load(Home(tmp_path, storage__layout=layout).config)


@fault("X2")
async def test_a_refused_layout_ends_the_program_before_anything_is_made(scene: Scene) -> None:
    scene.home.configure(storage__layout="../{order_id}")
    ran = await scene.command("run", "--drain")
    assert (ran.code, ran.out) == (78, "")
    assert "may not hold .." in ran.err
    assert not scene.home.archive.exists()
    assert not scene.home.ledger.exists()
    scene.home.configure(storage__layout="{order_id}")


@fault("X3")
async def test_a_link_in_the_place_of_a_folder_is_not_followed(
    scene: Scene, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    scene.order()
    await scene.drain()
    link = scene.home.archive / scene.lune.accounts[1].id
    link.symlink_to(outside)
    owed = scene.order(account_id=scene.lune.accounts[1].id)
    report = await scene.drain()
    assert report.collected.storage is not None
    assert "symbolic links are not followed" in report.collected.storage
    assert list(outside.iterdir()) == []
    link.unlink()
    assert (await scene.command("retry", owed.id)).code == 0
    assert (await scene.drain()).collected.stored == 1


@fault("X3")
async def test_a_link_in_the_place_of_a_certificate_is_not_followed(
    scene: Scene, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    order = scene.order()
    scene.home.configure(storage__layout="{order_id}")
    scene.home.archive.mkdir()
    link = scene.home.archive / f"{order.id}.pdf"
    link.symlink_to(victim)
    report = await scene.drain()
    assert (report.collected.stored, report.missing[0].state) == (0, "owed")
    assert victim.read_text() == "untouched"
    assert link.is_symlink()
    link.unlink()
    assert (await scene.command("retry", order.id)).code == 0
    assert (await scene.drain()).collected.stored == 1


@fault("X3")
async def test_a_link_in_the_place_of_the_incoming_folder_is_not_followed(
    scene: Scene, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    scene.order()
    scene.home.archive.mkdir()
    (scene.home.archive / ".incoming").symlink_to(outside)
    ran = await scene.command("run", "--drain")
    assert ran.code == 3
    assert list(outside.iterdir()) == []
    assert scene.home.files() == set()


class Connections:
    """Every address that this process connects to, as the interpreter reports it."""

    def __init__(self) -> None:
        self.seen: set[Any] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is not None and event == "socket.connect":
            self.seen.add(arguments[1][:2])
        if self.seen is not None and event == "socket.getaddrinfo":
            self.seen.add(arguments[:2])


CONNECTIONS = Connections()
"""One for all tests: an audit hook stays for the life of the process."""


@pytest.fixture
def connections() -> Iterator[set[Any]]:
    """Addresses connected to since the test began."""
    CONNECTIONS.seen = set()
    yield CONNECTIONS.seen
    CONNECTIONS.seen = None


@pytest.mark.parametrize("place", ["certificate", "certificate_url", "public_certificate_url"])
@fault("X4")
async def test_no_address_in_a_payload_is_ever_fetched(
    scene: Scene, connections: set[Any], place: str
) -> None:
    secrets = scene.home.folder / "lune_api_key"
    async with raw_server(saying(b"HTTP/1.1 200 OK\r\n\r\n", close=True)) as evil:
        addresses = [
            f"http://127.0.0.1:{evil.port}/v1/orders/x/certificate",
            f"https://evil.example:{evil.port}/",
            "http://169.254.169.254/latest/meta-data/",
            secrets.as_uri(),
            "//evil.example/x",
            "../../accounts/me",
            "gopher://127.0.0.1:25/x",
        ]
        orders = [scene.order() for _ in addresses]

        def poison(body: bytes) -> bytes:
            page = json.loads(body)
            for row, address in zip(page["data"], addresses, strict=False):
                row[place] = address
            return json.dumps(page).encode()

        scene.proxy.script(changed(poison), "orders", times=1)
        report = await scene.drain()
        assert report.collected.stored == len(orders)
        assert evil.connections == 0
    ours = {int(url.rpartition(":")[2][:-3]) for url in (scene.proxy.base_url, scene.lune.base_url)}
    assert {port for _, port in connections} == ours
