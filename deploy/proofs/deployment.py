"""compose.yaml with the sandbox in Lune's place, as a project of its own, and questions to it."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

from proofs.containers import compose_command, inspect
from proofs.steps import REPOSITORY, Proof, run

DOCKER = REPOSITORY / "deploy" / "docker"
ORDERS = 200


class Deployment:
    """compose.yaml with the sandbox in Lune's place, as a project of its own."""

    def __init__(self, proof: Proof, image: str) -> None:
        self.project = image.replace(":", "-")
        self._command = compose_command() or ()
        self.keys = _write_secrets(proof.folder / "secrets")
        files = [DOCKER / "compose.yaml", DOCKER / "compose.sandbox.yaml"]
        files.append(proof.folder / "proof.json")
        files[-1].write_text(json.dumps(_overlay(proof.folder / "secrets", self.keys)))
        self._files = [word for file in files for word in ("-f", str(file))]
        os.environ["HARVESTER_IMAGE"] = image
        proof.undo.callback(os.environ.pop, "HARVESTER_IMAGE")
        proof.undo.callback(self.remove)

    def compose(self, *words: str, exits: int = 0) -> str:
        """Run compose on the project."""
        return run(*self._command, "-p", self.project, *self._files, *words, exits=exits)

    def once(self, *words: str, exits: int = 0) -> str:
        """Run a command of the harvester as its service is confined, and remove the container."""
        return self.compose("run", "--rm", "-T", "harvester", *words, exits=exits)

    def container(self, service: str) -> str:
        """Return the id of a service's container."""
        return self.compose("ps", "-q", service).strip()

    def inside(self, service: str, *words: str) -> str:
        """Run a command in a service's container."""
        return run("docker", "exec", self.container(service), *words)

    def names(self) -> list[str]:
        """Return the names of the project's containers."""
        ours = f"label=com.docker.compose.project={self.project}"
        return run("docker", "ps", "--filter", ours, "--format", "{{.Names}}").split()

    def program(self, service: str, text: str) -> str:
        """Run a Python program in a service's container; return what it prints."""
        return self.inside(service, "python3", "-c", text).strip()

    def status(self) -> dict[str, Any]:
        """Return ``status --json``."""
        document: dict[str, Any] = json.loads(
            self.inside("harvester", "harvester", "status", "--json")
        )
        return document

    def stored(self) -> dict[str, str]:
        """Return the digests of the certificates that are stored, by order."""
        filters = ("orders", "--json", "--certificate", "stored", "--limit", str(10 * ORDERS))
        lines = self.inside("harvester", "harvester", *filters).splitlines()
        return {row["id"]: row["certificate"]["sha256"] for row in map(json.loads, lines)}

    def state(self, service: str = "harvester") -> dict[str, Any]:
        """Return what the engine says of a service's state."""
        state: dict[str, Any] = inspect(self.container(service))["State"]
        return state

    def logs(self, service: str) -> str:
        """Return all a service has written, on both streams."""
        words = ["docker", "logs", self.container(service)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def remove(self) -> None:
        """Remove containers, network and volumes."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")


def _write_secrets(folder: Path) -> dict[str, str]:
    """Make the three secrets as the page says: for group 10001, in files others cannot read."""
    folder.mkdir()
    random = secrets.token_hex(24)
    signing = base64.b64encode(secrets.token_bytes(32)).decode()
    keys = {
        "lune_api_key": f"key-{random}",
        "http_token": f"token-{secrets.token_hex(24)}",
        "billing_secret": f"whsec_{signing}",
    }
    for name, text in keys.items():
        file = folder / name
        file.write_text(f"{text}\n")
        os.chown(file, 0, 10001)
        file.chmod(0o440)
    return keys


def _overlay(folder: Path, keys: dict[str, str]) -> dict[str, Any]:
    """Return the proof's own layer: its secrets, more and quicker orders, a frequent check."""
    sandbox = ["sandbox", "--orders", str(ORDERS), "--speed", "864000"]
    check = {"interval": "2s", "timeout": "8s", "start_period": "60s", "retries": 2}
    return {
        "services": {
            "sandbox": {"command": [*sandbox, "--key", keys["lune_api_key"]]},
            "harvester": {"healthcheck": check},
        },
        "secrets": {name: {"file": str(folder / name)} for name in keys},
    }
