"""The acceptance suite inside containers, under the flags that the harvester runs under itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from proofs.containers import forget_container
from proofs.steps import REPOSITORY, Proof, run

_READ = (
    *("tests", "deploy", ".dockerignore", "pyproject.toml"),
    *("README.md", "LICENSE", "config.example.toml"),
)
"""What the tests are and look at, of the repository; the harvester is the image's."""

_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=/var/lib/harvester/tests")
_PATIENCE = 1800.0


def run_suite(proof: Proof, image: str, flags: Sequence[str]) -> str:
    """Run all of it in an image with its tests; return how many tests ended how, and why.

    In two containers, half the modules in each: one after the other the tests would leave a
    processor idle, and two workers in one would share what is enough for a harvester.
    """
    paths = sorted(REPOSITORY.glob("tests/acceptance/test_*.py"))
    modules = [str(path.relative_to(REPOSITORY)) for path in paths]
    mounts = [f"--volume={REPOSITORY / name}:/src/{name}:ro" for name in _READ]
    words = [*flags, *mounts, "--env=PYTHONPATH=/src", "--workdir=/src", "--no-healthcheck"]

    def run_half(number: int) -> str:
        name = f"{image.replace(':', '-')}-{number}"
        proof.undo.callback(forget_container, name)
        started = ("docker", "run", "--rm", "--name", name, *words, "--entrypoint=python3", image)
        return run(*started, *_PYTEST, *modules[number::2], within=_PATIENCE)

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(run_half, (0, 1)))
    return f"{len(modules)} modules, {_tally(said)}"


def _tally(said: Sequence[str]) -> str:
    """Return how many tests ended how in some runs of pytest, and why some were skipped."""
    ended: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for text in said:
        counts = text.splitlines()[-1].partition(" in ")[0]
        for number, end in re.findall(r"(\d+) (\w+)", counts):
            ended[end] += int(number)
        for number, reason in re.findall(r"(?m)^SKIPPED \[(\d+)\] \S+ (.+)$", text):
            skipped[reason] += int(number)
    ends = ", ".join(f"{number} {end}" for end, number in ended.items())
    reasons = ", ".join(f"{number} {reason}" for reason, number in skipped.items())
    return f"{ends} ({reasons})" if reasons else ends
