"""The key and where it must not be: on the network, in a command line, in a log, read by others."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harvester.config.load import load
from harvester.domain.errors import ConfigurationError, HarvesterError
from harvester.runtime.drain import Drain
from tests import canaries
from tests.acceptance.harness import Home
from tests.canaries import encodings
from tests.faults.catalogue import fault
from tests.faults.proxy import Answer, changed, response, saying
from tests.faults.scene import Scene
from tests.needs import cannot, need


@pytest.mark.parametrize(
    "url",
    [
        "http://api.lune.co/v1",
        "HTTP://API.LUNE.CO/v1",
        "http://10.0.0.1/v1",
        "http://127.0.0.1.evil.example/v1",
        "http://localhost.evil.example/v1",
        "http://127.0.0.1@evil.example/v1",
        "http://2130706433/v1",
        "http://0x7f.1/v1",
        "http://0.0.0.0/v1",
        "ftp://127.0.0.1/v1",
        "file:///etc/passwd",
        "//api.lune.co/v1",
        "api.lune.co/v1",
        "http://[::1",
        "",
    ],
)
@fault("X5")
def test_a_key_is_never_configured_to_travel_in_the_clear(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"lune\.base_url"):
        load(Home(tmp_path, lune__base_url=url).config)


@fault("X5")
async def test_plain_http_ends_the_program_before_a_byte_is_sent(scene: Scene) -> None:
    scene.home.configure(lune__base_url="http://lune.example/v1")
    ran = await scene.command("run", "--drain")
    assert ran.code == 78
    assert "plain http is for a loopback host only" in ran.err
    assert scene.proxy.requests == []
    scene.home.configure(lune__base_url=scene.proxy.base_url)


@fault("X6")
async def test_no_secret_is_in_the_command_line_or_environment_of_the_daemon(
    scene: Scene,
) -> None:
    async with scene.home.daemon() as running:
        process = Path(f"/proc/{running.process.pid}")
        shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        threads = b"".join(path.read_bytes() for path in process.glob("task/*/comm"))
        ran = await running.end()
    scene.keep(ran.err)
    assert b"harvester" in shown
    assert not any(form in shown + threads for form in encodings(scene.lune.key))


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--api-key={}"),
        ("run", "--api-key", "{}"),
        ("run", "--lune.api_key={}"),
        ("--api-key={}", "run"),
        ("doctor", "--key={}"),
    ],
)
@fault("X6")
async def test_a_key_in_the_command_line_is_a_usage_error_that_does_not_repeat_it(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ran = await Home(tmp_path).run(*(one.format("canary-9a1f77") for one in arguments))
    assert ran.code == 2
    assert "canary" not in ran.out + ran.err


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o666, 0o444, 0o777])
@fault("X7")
async def test_a_key_file_that_every_user_reads_is_refused_with_the_cure(
    scene: Scene, mode: int
) -> None:
    key = scene.home.folder / "lune_api_key"
    key.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"run `chmod 600 {key}`"):
        await scene.drain()
    assert scene.proxy.requests == []
    key.chmod(0o600)
    await scene.drain()


@fault("X7")
async def test_a_command_with_a_key_that_every_user_reads_exits_78(scene: Scene) -> None:
    key = scene.home.folder / "lune_api_key"
    key.chmod(0o644)
    for arguments in (("run",), ("doctor",)):
        ran = await scene.command(*arguments)
        assert ran.code == 78
        assert f"chmod 600 {key}" in ran.out + ran.err
    # What needs no key works all the same.
    assert (await scene.command("db", "upgrade")).code == 0
    assert (await scene.command("orders")).code == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\xef\xbb\xbfcanary-41c9",
        "canary-41c9".encode("utf-16"),
        b"canary\0-41c9",
        b"canary-41c9\nX-Evil: 1",
        b"canary-41c9" * 400,
        b"canary-41c9" * 950_000,
        b"-----BEGIN canary-41c9 KEY-----\n",
    ],
    ids=["empty", "blank", "bom", "utf16", "nul", "header", "4 KiB", "10 MB", "words"],
)
@fault("X7")
async def test_a_key_file_that_holds_no_key_is_refused_without_showing_it(
    scene: Scene, data: bytes
) -> None:
    (scene.home.folder / "lune_api_key").write_bytes(data)
    with pytest.raises(ConfigurationError, match="lune_api_key") as refused:
        await scene.drain()
    assert "canary" not in str(refused.value)
    assert scene.proxy.requests == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", " \t"])
@fault("X7")
async def test_what_an_editor_leaves_behind_a_key_is_not_sent(scene: Scene, end: str) -> None:
    (scene.home.folder / "lune_api_key").write_bytes((scene.lune.key + end).encode())
    await scene.drain()
    assert {seen.headers["authorization"] for seen in scene.proxy.requests} == {
        f"Bearer {scene.lune.key}"
    }


@fault("X7")
async def test_a_file_from_systemd_may_be_readable_where_it_lies(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    key = (scene.home.folder / "lune_api_key").rename(folder / "lune_api_key")
    key.chmod(0o444)
    scene.home.configure(lune__api_key_file=str(key))
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await scene.drain()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    await scene.drain()
    assert scene.proxy.count("orders")


@fault("X7")
def test_a_file_in_run_secrets_may_be_readable_to_all(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "root, to mount")
    read = (
        "from pathlib import Path\nfrom harvester.config.secrets import Secret\n"
        "print(Secret('lune.api_key', None, Path('/var/run/secrets/lune_api_key')).read())\n"
        "print(Secret('lune.api_key', None, None).read())"
    )
    script = (
        "mount -t tmpfs tmpfs /run && mkdir -p /run/secrets && umask 022 "
        '&& printf mounted-key > /run/secrets/lune_api_key && exec "$0" -c "$1"'
    )
    if not Path("/var/run").is_symlink():
        cannot("needs /var/run to be the link to /run")
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, read],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
        cwd=Path(__file__).parents[2],
    )
    if "unshare" in ran.stderr or "mount:" in ran.stderr:
        cannot("needs mount namespaces")
    assert ran.stdout.split() == ["mounted-key", "mounted-key"], ran.stderr


def _quoting(key: str) -> list[Answer]:
    """Return answers that show the key, each in its own place."""
    said = json.dumps({"error": {"error_code": "id_invalid", "message": f"key {key}"}}).encode()
    coded = json.dumps({"error": {"error_code": key, "message": key * 40}}).encode()
    html = f"<html><title>{key}</title>Authorization: Bearer {key}</html>".encode()
    body = f"HTTP/1.1 200 OK\r\n{key}: {key}\r\nX-{key}\r\n\r\n".encode()
    return [
        saying(response(400, said)),
        saying(response(422, coded, CF_Ray=key)),
        saying(response(502, html, "text/html")),
        saying(response(503, key.encode(), "text/plain", Retry_After=key)),
        saying(response(200, b"{}", f"text/{key}", Content_Encoding=key)),
        saying(response(302, b"", "", Location=f"/{key}?{key}")),
        saying(body, close=True),
        saying(f"HTTP/1.1 401 {key}\r\nContent-Length: 0\r\n\r\n".encode()),
        saying(f"{key}\r\n\r\n".encode(), close=True),
        changed(lambda _: json.dumps(_endless(key)).encode()),
        changed(lambda _: f'{{"{key}'.encode()),
    ]


def _endless(key: str) -> dict[str, object]:
    return {"data": [{"id": key, key: key}], "has_more": True, "next_cursor": f"{key}\n"}


@fault("X8")
async def test_a_server_that_quotes_the_key_back_does_not_get_it_written_down(
    scene: Scene,
) -> None:
    scene.home.configure(lune__rate_limit=100_000)
    orders = set()
    for answer in _quoting(scene.lune.key):
        for endpoints in (("orders",), ("order", "certificate"), ("account",)):
            orders.add(scene.order().id)
            scene.proxy.clear()
            for endpoint in endpoints:
                scene.proxy.script(answer, endpoint, times=9)
            await _drain_as_far_as_it_goes(scene)
    scene.proxy.clear()
    scene.proxy.listed = {one for one in scene.proxy.listed if one[1] in orders}
    assert (await scene.command("retry", "--all")).code == 0
    await scene.drain()


@fault("X8")
async def test_a_key_that_is_quoted_inside_of_an_order_is_not_kept(scene: Scene) -> None:
    order, key = scene.order("placed"), scene.lune.key

    def quote(body: bytes) -> bytes:
        page = json.loads(body)
        [row] = page["data"]
        row |= {"metadata": {"note": f"with {key}", key: ""}, "idempotency_key": key}
        page["data"] = [row, {"id": key}, {**row, "id": f"{key}-1", "status": key}, {"x": key}]
        return json.dumps(page).encode()

    scene.proxy.script(changed(quote), "orders")
    report = await scene.drain()
    scene.proxy.listed = {one for one in scene.proxy.listed if one[1] == order.id}
    assert report.swept.seen >= 1
    shown = await scene.home.orders()
    assert "with ***" in str(shown[order.id]["metadata"])


async def _drain_as_far_as_it_goes(scene: Scene) -> None:
    async with scene.open() as app:
        try:
            async with asyncio.timeout(0.3):
                await Drain(app).run()
        except (HarvesterError, TimeoutError):
            pass


@fault("X8")
async def test_the_database_password_is_in_no_message_about_it(scene: Scene) -> None:
    password = canaries.DATABASE_PASSWORD
    for url in (
        f"postgresql://harvester:{password}@127.0.0.1:1/ledger",
        f"postgres://harvester:{password}@127.0.0.1/ledger",
        f"mysql://harvester:{password}@127.0.0.1/ledger",
    ):
        scene.home.configure(database__url=url)
        ran = await scene.command("doctor")
        assert ran.code == 78
        assert not list(canaries.shown_in((ran.out + ran.err).encode()))
    scene.home.configure(database__url=f"sqlite:///{scene.home.ledger}")
    scene.secrets.append(password)
    scene.secret_files.add("config.toml")


@pytest.mark.parametrize("form", ["json", "console"])
@fault("X8")
async def test_a_crash_shows_no_key_at_the_chattiest_level(
    scene: Scene, form: str, tmp_path: Path
) -> None:
    scene.home.configure(log__level="debug", log__format=form, webhook__secret="whsec-canary-77b1")
    scene.secrets.append("whsec-canary-77b1")
    scene.secret_files.add("config.toml")
    break_it = (
        "import asyncio, logging, os, sys\n"
        "from pathlib import Path\n"
        "from harvester import logs\nfrom harvester.config.load import load\n"
        "import structlog\n"
        "settings = load(Path(sys.argv[1]))\n"
        "key = settings.api_key.read()\n"
        f"logs.configure('debug', '{form}')\n"
        "try:\n    raise RuntimeError('broken')\n"
        "except RuntimeError:\n"
        "    structlog.get_logger().exception('crash', settings=settings, key=settings.api_key)\n"
        "    logging.getLogger('other').exception('crash %r %s', settings, settings.api_key)\n"
        "print(repr(settings), settings, settings.model_dump(), settings.model_dump_json())\n"
        "raise RuntimeError(settings)\n"
    )
    ran = await scene.home.run(
        scene.home.config, program=(sys.executable, "-X", "dev", "-c", break_it)
    )
    assert ran.err.count("broken") >= 2
    for secret in (scene.lune.key, "whsec-canary-77b1"):
        assert not any(form in (ran.out + ran.err).encode() for form in encodings(secret))


@fault("X8")
def test_the_search_after_every_test_can_fail(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(
        f"KEY = {canaries.KEY!r}\n"
        "import base64\n"
        "def test_file(tmp_path): (tmp_path / 'dump').write_text('x' + KEY)\n"
        "def test_base64(tmp_path):\n"
        "    (tmp_path / 'b64').write_bytes(base64.b64encode(b'ab:' + KEY.encode() + b':z'))\n"
        "def test_name(tmp_path): (tmp_path / KEY).mkdir()\n"
        "def test_out(): print(KEY)\n"
        "def test_err():\n    import sys\n    print(KEY.encode().hex(), file=sys.stderr)\n"
        "def test_log():\n    import logging\n    logging.getLogger('x').warning('k %s', KEY)\n"
        "def test_fine(tmp_path):\n"
        "    (tmp_path / 'lune_api_key').write_text(KEY)\n    print(KEY[:-4])\n"
    )
    here = str(Path(__file__).parents[2])
    options = ["-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--import-mode=importlib"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=here,
        env={**os.environ, "PYTHONPATH": here, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    errors = [line for line in ran.stdout.splitlines() if line.startswith("ERROR ")]
    leaking = {line.split("::")[1].split()[0] for line in errors}
    assert leaking == {f"test_{one}" for one in ("file", "base64", "name", "out", "err", "log")}
    assert "7 passed" in ran.stdout
