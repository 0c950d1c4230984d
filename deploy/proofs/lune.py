"""The sandbox of an installed harvester, in Lune's place on this machine's loopback."""

from __future__ import annotations

import json
import re
import secrets
import urllib.request
from pathlib import Path
from typing import Any

from proofs.steps import Proof, start, until

_ENDS = ("complete", "cancelled", "failed")


def is_settled(status: dict[str, Any], orders: int) -> bool:
    """Tell by ``status --json`` whether just so many orders are known, all ended and all stored."""
    by_status: dict[str, int] = status["orders"]
    certificates: dict[str, int] = status["certificates"]
    ended = sum(by_status.get(end, 0) for end in _ENDS)
    stored = certificates.get("stored", 0) == by_status.get("complete", 0)
    return stored and ended == orders == sum(by_status.values())


class Lune:
    """A sandbox on a port of its own, from now until the proof ends.

    ``program`` is the installed command, ``options`` are the sandbox's own.
    """

    def __init__(self, proof: Proof, program: Path, options: str) -> None:
        self.key = f"key-{secrets.token_hex(24)}"
        log = proof.folder / "sandbox.log"
        start(proof, [program, "sandbox", "--port", "0", "--key", self.key, *options.split()], log)
        until(lambda: "config.toml" in log.read_text("utf-8"), "the sandbox")
        introduction = log.read_text("utf-8")
        (self.base_url,) = re.findall(r'^base_url = "(.+)"$', introduction, re.MULTILINE)
        self.accounts = re.findall(r"^  (\w{32})  ", introduction, re.MULTILINE)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request to the sandbox's own endpoints; return what it answers."""
        request = urllib.request.Request(  # noqa: S310 - the sandbox's own address
            f"{self.base_url.removesuffix('/v1')}/_sandbox{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the sandbox's own address
            return json.loads(answer.read() or b"null")

    def requests(self, endpoint: str) -> int:
        """Return how many requests were made to endpoints with this word in their path."""
        counts: dict[str, dict[str, int]] = self.ask("GET", "")["requests"]
        return sum(sum(times.values()) for path, times in counts.items() if endpoint in path)
