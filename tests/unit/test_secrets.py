"""Secrets: read when needed from wherever they are, and never shown."""

from __future__ import annotations

import copy
import pickle
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from harvester.config.secrets import Secret
from harvester.domain.errors import ConfigurationError

KEY = "sk_live_Canary-0123456789"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lune_api_key"
    path.touch(0o600)
    return path


def secret(value: str | None = None, file: Path | None = None) -> Secret:
    return Secret("lune.api_key", None if value is None else SecretStr(value), file)


def refusal(of: Secret) -> str:
    """Return why a secret cannot be read, after looking for it in all that a log could show."""
    with pytest.raises(ConfigurationError) as refused:
        of.read()
    shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
    assert "Canary" not in shown
    return str(refused.value)


@pytest.mark.parametrize(
    "text",
    [KEY, f"{KEY}\n", f"{KEY}\r\n", f"  {KEY}\t\n", f"\n{KEY}\n\n"],
    ids=["bare", "newline", "crlf", "blanks", "blank lines"],
)
def test_a_secret_file_is_read_without_what_editors_add(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    assert secret(file=file).read() == KEY


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n", b"  \t \n"])
def test_an_empty_secret_file_is_refused_by_name(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert refusal(secret(file=file)) == f"lune.api_key_file {file}: is empty"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"Canary\0key", "characters no key has"),
        (b"\xff\xfeC\0a\0", "characters no key has"),
        (b"\xef\xbb\xbfCanary", "characters no key has"),
        ("Canary\u00e9".encode(), "characters no key has"),
        (b"Canary key", "holds spaces"),
        (b"Canary\nCanary", "characters no key has"),
        (b"Canary\r\nHost: evil", "characters no key has"),
        (b"Canary\x1b[2J", "characters no key has"),
        (b"Canary" * 1000, "larger than 4096 bytes"),
    ],
    ids=["nul", "utf16", "bom", "accent", "space", "lines", "header", "escape", "large"],
)
def test_what_cannot_be_a_key_is_refused_without_showing_it(
    file: Path, data: bytes, reason: str
) -> None:
    file.write_bytes(data)
    message = refusal(secret(file=file))
    assert f"lune.api_key_file {file}" in message
    assert reason in message


def test_a_key_of_the_largest_size_is_read(file: Path) -> None:
    file.write_bytes(b"k" * 4096)
    assert secret(file=file).read() == "k" * 4096


def test_a_missing_file_is_named_with_the_reason(file: Path) -> None:
    file.unlink()
    message = refusal(secret(file=file))
    assert f"lune.api_key_file {file}: cannot be read: No such file" in message


def test_a_folder_is_no_secret_file(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refusal(secret(file=tmp_path))


def test_a_missing_secret_says_where_to_put_one() -> None:
    message = refusal(secret())
    assert "lune.api_key is missing" in message
    assert "lune.api_key_file" in message
    assert "HARVESTER_LUNE__API_KEY" in message


@pytest.mark.parametrize("value", ["", " ", "Canary key", "Canary\nkey", "Canary\u00e9"])
def test_a_value_given_directly_keeps_the_same_rules(value: str) -> None:
    assert "lune.api_key: " in refusal(secret(value))


def test_a_value_given_directly_is_stripped() -> None:
    assert secret(f"{KEY}\n").read() == KEY


def test_a_named_file_outweighs_a_value(file: Path) -> None:
    file.write_text(KEY)
    assert secret("another", file).read() == KEY


def test_a_rotated_key_is_found_by_reading_again(file: Path) -> None:
    kept = secret(file=file)
    file.write_text("old")
    assert kept.read() == "old"
    file.write_text("new")
    assert kept.read() == "new"


def test_a_systemd_credential_is_found_under_the_settings_name(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file.write_text(f"{KEY}\n")
    assert secret().file() == file
    assert secret().read() == KEY


def test_a_systemd_credential_gives_way_to_what_is_configured(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file.write_text("credential")
    (tmp_path / "named").write_text("named")  # 0644 or so: it lies among systemd's credentials
    assert secret(file=tmp_path / "named").read() == "named"
    assert secret("given").read() == "given"


@pytest.mark.parametrize("folder", ["", "/nonexistent"])
def test_without_a_credential_the_secret_is_simply_missing(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", folder)
    assert secret().file() is None
    assert "is missing" in refusal(secret())


def test_a_secret_is_not_shown_by_any_way_of_printing() -> None:
    kept = secret(KEY)
    assert {str(kept), repr(kept), f"{kept}", f"{[kept]}"} == {
        "<secret lune.api_key>",
        "[<secret lune.api_key>]",
    }
    assert KEY not in str(vars(kept))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="not serialised"):
        pickle.dumps(secret(KEY), protocol)


def test_a_secret_is_not_copied() -> None:
    with pytest.raises(TypeError, match="not serialised"):
        copy.deepcopy(secret(KEY))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o660])
def test_a_file_of_the_owner_and_a_group_is_read(file: Path, mode: int) -> None:
    file.write_text(KEY)
    file.chmod(mode)
    assert secret(file=file).read() == KEY


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o606])
def test_a_file_that_every_user_may_read_or_change_is_refused(file: Path, mode: int) -> None:
    file.write_text(KEY)
    file.chmod(mode)
    assert refusal(secret(file=file)) == (
        f"lune.api_key_file {file}: every user of this machine may read or change it; "
        f"run `chmod 600 {file}`"
    )


def test_a_link_is_judged_by_the_file_behind_it(file: Path, tmp_path: Path) -> None:
    file.write_text(KEY)
    link = tmp_path / "link"
    link.symlink_to(file)
    assert secret(file=link).read() == KEY
    file.chmod(0o644)
    assert "chmod 600" in refusal(secret(file=link))


def test_a_credential_may_be_readable_to_all_where_systemd_put_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(KEY)
    file.chmod(0o444)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
    assert secret().read() == secret(file=file).read() == KEY
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent / "other"))
    assert "chmod 600" in refusal(secret(file=file))
