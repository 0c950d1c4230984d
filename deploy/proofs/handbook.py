"""The commands of deploy/README.md, by their headings: what is documented is what is run."""

from __future__ import annotations

import re

from proofs.steps import REPOSITORY

_PAGE = REPOSITORY / "deploy" / "README.md"
_HEADING = re.compile(r"(?m)^#+ (.+)$")
_BLOCK = re.compile(r"(?ms)^```sh\n(.*?)^```$")


def read_blocks() -> dict[str, list[list[str]]]:
    """Return the blocks of commands below each heading, a block as its lines.

    A command over several lines is one line; comments are left out.
    """
    _, *parts = _HEADING.split(_PAGE.read_text("utf-8"))
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    return {
        heading: [_commands(block) for block in _BLOCK.findall(text)]
        for heading, text in texts.items()
    }


def _commands(block: str) -> list[str]:
    lines = (re.sub(r"\s+#\s.*", "", line) for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.strip() and not line.startswith("#")]
