"""The long run over hostile bytes: ``python -m tests.faults.fuzz --seconds N [--target NAME]``.

Hypothesis draws documents that are nearly right; where atheris is installed (``pip install
atheris``), coverage guides the other half of the time. Each target runs in a process of its own.
Printed are the inputs of each target and what was new: a finding is kept as a file that
``--replay`` runs again. Exits 1 when there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

ATHERIS = importlib.util.find_spec("atheris") is not None


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - for whoever runs it


class Watch:
    """Run a target, count, and keep one input of each way to fail."""

    def __init__(self, name: str, target: Callable[[bytes], None], folder: Path) -> None:
        self._name = name
        self._target = target
        self._folder = folder
        self.runs = 0
        self.slowest = 0.0
        self.found: dict[str, Path] = {}

    def __call__(self, data: bytes) -> None:
        """Run it once; a failure is printed once for each place it comes from."""
        self.runs += 1
        began = time.perf_counter()
        try:
            self._target(data)
        except Exception as error:  # noqa: BLE001 - every kind is one
            self._keep(error, data)
        self.slowest = max(self.slowest, time.perf_counter() - began)

    def _keep(self, error: Exception, data: bytes) -> None:
        places = traceback.extract_tb(error.__traceback__)
        ours = [one for one in places if "/harvester/" in one.filename] or places
        place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        if place not in self.found:
            path = self._folder / f"{self._name}-{len(self.found)}"
            path.write_bytes(data)
            self.found[place] = path
            _say(f"{self._name}: {place}: {str(error)[:200]!a}, input {path}")

    def tell(self, engine: str) -> int:
        """Print what was found and return the exit code."""
        count = len(self.found)
        _say(
            f"{self._name} ({engine}): {self.runs} inputs, {count} new findings, "
            f"slowest {self.slowest * 1000:.0f} ms",
        )
        return min(count, 1)


@contextlib.contextmanager
def opened(name: str) -> Iterator[Callable[[bytes], None]]:
    """Yield a target by its name."""
    from tests.faults import fuzz_targets

    if name == "http":
        with fuzz_targets.http() as target:
            yield target
    else:
        yield fuzz_targets.TARGETS[name]


def names() -> list[str]:
    """Return the targets there are."""
    from tests.faults.fuzz_seeds import SEEDS

    return list(SEEDS)


def guided(name: str, seconds: float, folder: Path) -> int:
    """Fuzz one target with atheris; never returns, since libFuzzer ends the process."""
    atheris = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["harvester", "pypdf"]):
        from tests.faults import fuzz_targets
    from tests.faults.fuzz_seeds import SEEDS

    del fuzz_targets
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    with opened(name) as target:
        watch = Watch(name, target, folder)
        until = time.monotonic() + seconds

        def once(data: bytes) -> None:
            if time.monotonic() > until:
                code = watch.tell("atheris")
                sys.stdout.flush()
                os._exit(code)
            watch(data)

        atheris.Setup([sys.argv[0], "-timeout=60", "-max_len=8192", str(corpus)], once)
        atheris.Fuzz()
    return 1


def drawn(name: str, seconds: float, folder: Path) -> int:
    """Fuzz one target with what Hypothesis draws."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.faults.fuzz_seeds import inputs

    with opened(name) as target:
        watch = Watch(name, target, folder)
        until = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < until:

            @seed(rounds)
            @settings(
                max_examples=200,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(inputs(name))
            def draw(data: bytes) -> None:
                if time.monotonic() < until:
                    watch(data)

            draw()
            rounds += 1
        return watch.tell("hypothesis")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--target", choices=names(), help="this one only")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input and raise")
    parser.add_argument("--engine", choices=["atheris", "hypothesis"])
    options = parser.parse_args()
    if options.replay:
        with opened(options.target or options.replay.name.partition("-")[0]) as target:
            target(options.replay.read_bytes())
        return 0
    if options.engine and options.target:
        run = guided if options.engine == "atheris" else drawn
        return run(options.target, options.seconds, options.findings)
    if not ATHERIS:
        _say("atheris is not here, so nothing guides the draws: pip install atheris")
    engines = [options.engine] if options.engine else ["hypothesis", "atheris"][: 1 + ATHERIS]
    chosen = [options.target] if options.target else names()
    codes = []
    for name, engine in itertools.product(chosen, engines):
        command = [sys.executable, "-m", "tests.faults.fuzz", "--target", name, "--engine", engine]
        command += ["--seconds", str(options.seconds / len(engines))]
        command += ["--findings", str(options.findings)]
        ended = subprocess.run(command, check=False, stderr=subprocess.PIPE)
        if ended.returncode not in {0, 1}:
            sys.stderr.buffer.write(ended.stderr[-4000:])
        codes.append(ended.returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
