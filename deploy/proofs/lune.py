"""The sandbox of Lune on this machine's loopback, for a proof."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from proofs.steps import Proof, fail, run

KEY = "sandbox-key"


class Lune:
    """The sandbox, on this machine's loopback: it stays while the other machine reboots."""

    def __init__(self, proof: Proof) -> None:
        self.base_url = ""
        self._folder = proof.folder
        self._process: subprocess.Popen[str] | None = None
        proof.undo.callback(self.end)

    def install(self, wheels: Path) -> None:
        """Install a harvester of this machine's own, for its sandbox."""
        run(sys.executable, "-m", "venv", self._folder / "sandbox")
        pip = (self._folder / "sandbox" / "bin" / "pip", "install", "--quiet", "--no-index")
        run(*pip, "--find-links", wheels, "lune-harvester")

    def start(self) -> None:
        """Serve some orders, a day of theirs in ten seconds."""
        command = [str(self._folder / "sandbox" / "bin" / "harvester"), "sandbox", "--key", KEY]
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--orders", "40"], stdout=subprocess.PIPE, text=True
        )
        said = self._process.stdout.readline() if self._process.stdout else ""
        found = re.search(r"http://\S+/v1", said)
        if found is None:
            fail(f"the sandbox said: {said}")
        self.base_url = found[0]

    def ask(self, method: str, path: str, body: object = None) -> None:
        """Send a request to the sandbox's own endpoints, or place an order."""
        request = urllib.request.Request(  # noqa: S310 - the sandbox's own address
            self.base_url.removesuffix("/v1") + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30):  # noqa: S310 - see above
            pass

    def end(self) -> None:
        """End the sandbox."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None
