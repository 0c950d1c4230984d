"""A secret that is read when it is needed and never shown."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import SecretStr

from harvester.domain.errors import ConfigurationError
from harvester.files import atomic_file

_LARGEST = 4096
_CONTAINER_SECRETS = Path("/run/secrets")


class Secret:
    """Where a secret comes from: its file, a systemd credential, /run/secrets, or the value.

    ``name`` is the setting's dotted name; credentials and container secrets are looked for under
    it with an underscore (``lune_api_key``).
    """

    def __init__(self, name: str, value: SecretStr | None, file: Path | None) -> None:
        self.name = name
        self._value = value
        self._file = file

    def __repr__(self) -> str:
        return f"<secret {self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not serialised")

    def file(self) -> Path | None:
        """Return the file the secret is read from, None when there is none."""
        if self._file is not None:
            return self._file
        for folder in _guarded_folders():
            candidate = folder / self.name.replace(".", "_")
            if self._value is None and candidate.is_file():
                return candidate
        return None

    def read(self) -> str:
        """Return the secret; ConfigurationError says which rule it breaks, never what it is.

        A file that every user of the machine may read or change is refused, wherever the system
        does not keep them out by other means.
        """
        return _checked(*self._text())

    def read_all(self) -> tuple[str, ...]:
        """Return the secrets, one a line, the newest first; ConfigurationError as for one."""
        text, place = self._text()
        return tuple(_checked(line, place) for line in text.strip().splitlines()) or (
            _checked("", place),
        )

    def _text(self) -> tuple[str, str]:
        """Return what was configured, as it is, and where."""
        file = self.file()
        if file is not None:
            if self.is_exposed():
                raise ConfigurationError(
                    f"{self.name}_file {file}: every user of this machine may read or change it; "
                    f"run `chmod 600 {file}`"
                )
            return _read(self.name, file), f"{self.name}_file {file}"
        if self._value is not None:
            return self._value.get_secret_value(), self.name
        raise ConfigurationError(
            f"{self.name} is missing: put the key into a file and name it as {self.name}_file, "
            f"or set HARVESTER_{self.name.replace('.', '__').upper()}"
        )

    def is_exposed(self) -> bool:
        """Tell whether every user of this machine may read or change the secret's file.

        The mode decides, except in systemd's credential directory and /run/secrets: there files
        are often 0440 or 0444 below a folder that only the service can enter.
        """
        file = self.file()
        if file is None or any(_is_below(file, folder) for folder in _guarded_folders()):
            return False
        try:
            return bool(file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
        except OSError:
            return False  # reading it says why


def write_secrets(path: Path, secrets: Sequence[str]) -> None:
    """Put these secrets into a file, one a line, whole and durable or not at all.

    Only its owner may read it; a file that is replaced keeps its owner. Raises ``OSError``.
    """
    with atomic_file(path) as stream:
        stream.write("".join(f"{secret}\n" for secret in secrets))


def _guarded_folders() -> list[Path]:
    """Return the folders in which the system hands secrets to one service."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return [*([Path(credentials)] if credentials else []), _CONTAINER_SECRETS]


def _is_below(file: Path, folder: Path) -> bool:
    # Resolved: /var/run is a link to /run, and Kubernetes links a secret to its newest version.
    return file.resolve().is_relative_to(folder.resolve())


def _read(name: str, file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"{name}_file {file}: cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST:
        raise ConfigurationError(f"{name}_file {file}: larger than {_LARGEST} bytes, no key")
    try:
        return data.decode("ascii").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}_file {file}: holds characters no key has") from None


def _checked(text: str, place: str) -> str:
    text = text.strip()
    if not text:
        raise ConfigurationError(f"{place}: is empty")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(f"{place}: holds spaces or characters no key has")
    return text
