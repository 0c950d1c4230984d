"""The installed command with a configuration, a ledger and an archive in a folder of its own."""

from __future__ import annotations

import compileall
import json
import os
import sys
from pathlib import Path

import harvester
from tests.bench.static_lune import KEY

HARVESTER = Path(sys.executable).with_name("harvester")

# As pip does, which an environment with PYTHONDONTWRITEBYTECODE keeps an editable install from.
compileall.compile_dir(Path(harvester.__file__).parent, quiet=1)


class Installation:
    """A folder that commands run in; ``settings`` are written like ``lune__rate_limit=10``."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.ledger = folder / "data" / "harvester.db"
        self.archive = folder / "certificates"
        for place in (self.ledger.parent, self.archive):
            place.mkdir(parents=True, exist_ok=True)
        key = folder / "lune_api_key"
        key.write_text(KEY)
        key.chmod(0o600)
        self._settings: dict[str, object] = {
            "lune__api_key_file": str(key),
            "database__url": f"sqlite:///{self.ledger}",
            "storage__url": self.archive.as_uri(),
            "http__listen": "",
        }
        self.configure(**settings)

    def configure(self, **settings: object) -> None:
        """Change some settings."""
        self._settings |= settings
        sections: dict[str, list[str]] = {}
        for name, value in self._settings.items():
            section, _, key = name.partition("__")
            # A JSON value is a TOML value.
            sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
        lines = [line for name, keys in sections.items() for line in (f"[{name}]", *keys)]
        (self.folder / "config.toml").write_text("\n".join(lines) + "\n")

    def environment(self) -> dict[str, str]:
        """Return this process's environment without what would configure the command."""
        foreign = ("HARVESTER_", "CREDENTIALS_DIRECTORY")
        return {name: text for name, text in os.environ.items() if not name.startswith(foreign)}
