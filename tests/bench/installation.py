"""The installed command with a configuration, a ledger and an archive in a folder of its own."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.harness import Home
from tests.bench.static_lune import KEY


class Installation(Home):
    """A home with the static Lune's key, whose folders are there before the first command."""

    def __init__(self, folder: Path, **settings: object) -> None:
        for one in (folder / "data", folder / "certificates"):
            one.mkdir(parents=True, exist_ok=True)
        key = folder / "lune_api_key"
        key.write_text(KEY)
        key.chmod(0o600)
        super().__init__(folder, None, lune__api_key_file=str(key), **settings)
