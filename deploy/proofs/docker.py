"""The image and compose.yaml, built and run for real, with all that is claimed of them.

Needs root on a Debian machine, whose packages it installs where they are missing: an engine, which
it starts when none answers, compose and debootstrap. Python's image that cannot be pulled is stood
in for by Debian with its own Python; ``PROVE_BASE_IMAGE`` names another. Everything that was made
is removed at the end; packages, and that Debian, stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence

from proofs import containers
from proofs.deployment import DOCKER, ORDERS, Deployment
from proofs.lune import is_settled
from proofs.steps import Proof, StepFailed, fail, judge, run, until
from proofs.suite import run_suite

_WRONG_KEY, _HELD, _CONFIGURATION = 77, 75, 78
_IDLE_STOP_SECONDS = 2.0
_STATE_INSIDE = """
import errno, json, pathlib, subprocess
status = dict(line.split(":\\t", 1) for line in open("/proc/1/status") if ":\\t" in line)
names = ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
seen = {name: status[name].split()[0] for name in names}
def refusal(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
def execute():
    script = pathlib.Path("/tmp/script")
    script.write_text("#!/bin/true")
    script.chmod(0o700)
    subprocess.run([script])
seen["root"] = refusal(lambda: pathlib.Path("/written").touch())
seen["program in /tmp"] = refusal(execute)
print(json.dumps(seen))
"""
_CONFINED = {
    "Uid": "10001",
    "CapEff": "0" * 16,
    "CapBnd": "0" * 16,
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "root": "EROFS",
    "program in /tmp": "EACCES",
}
_UNSIGNED = """
import urllib.error, urllib.request
try:
    urllib.request.urlopen("http://billing:9000/events", data=b"{}", timeout=5)
except urllib.error.HTTPError as error:
    print(error.code)
"""
_LOOK_AS_BILLING = """
import errno, os, pathlib
found = sorted(pathlib.Path("/srv/certificates").glob("*/*/*.pdf"))
assert all(path.read_bytes().startswith(b"%PDF-") for path in found)
mode = oct(found[0].stat().st_mode & 0o777)
try:
    found[0].unlink()
except OSError as error:
    print(len(found), os.getuid(), errno.errorcode[error.errno], mode)
"""
_COST = """
import resource, subprocess
for _ in range(5):
    subprocess.run(["harvester", "healthcheck", "--live"], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{(used.ru_utime + used.ru_stime) / 5:.2f} s of processor time, {used.ru_maxrss >> 10} MiB")
"""


def prove(proof: Proof) -> None:
    """Build the image and take compose.yaml through all that can happen to it."""
    image = f"harvester-proof:{os.getpid()}"
    wheels = _prove_image(proof, image)
    deployment = Deployment(proof, image)
    with proof.step("compose starts harvester, billing and a sandbox"):
        deployment.compose("up", "-d", "--no-build")
        proof.seen = " ".join(deployment.names())
    _prove_confined(proof, deployment)
    _prove_kill(proof, deployment)
    _prove_harvest(proof, deployment)
    _prove_billing(proof, deployment)
    _prove_health(proof, deployment)
    _prove_one_shots(proof, deployment)
    _prove_no_secret(proof, deployment, image)
    flags = containers.flags_of(deployment.container("harvester"))
    _prove_stop(proof, deployment)
    _prove_tests(proof, image, wheels, flags)
    _prove_nothing_left(proof, deployment)


def _prove_image(proof: Proof, image: str) -> str:
    with proof.step("an engine, compose and a base image"):
        containers.install_engine()
        version = containers.answering_engine(proof)
        base = containers.base_image(proof, f"{image}-base")
        compose = " ".join(containers.compose_command() or ())
        proof.seen = f"engine {version}, {compose}, {base}, {_megabytes(base):.0f} MB"
    with proof.step("the image is built of wheels, without an index"):
        wheels = containers.serve_wheels(proof, base)
        arguments = {"BASE_IMAGE": base, "REVISION": "proof"}
        containers.build(proof, image, DOCKER / "Dockerfile", wheels=wheels, **arguments)
        whole, below = _megabytes(image), _megabytes(base)
        proof.seen = f"{whole:.0f} MB, of them {whole - below:.0f} MB on top of the base"
    with proof.step("it has labels, a numeric user, and neither pip nor tests"):
        config = containers.inspect(image)["Config"]
        program = "import importlib.util as i; print(*map(i.find_spec, ('pip', 'setuptools')))"
        python = ("--entrypoint", "/opt/harvester/bin/python3", image, "-c", program)
        if (found := run("docker", "run", "--rm", *python).strip()) != "None None":
            fail(found)
        labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
        proof.seen = f"user {config['User']}, version {labels['version']}, {labels['licenses']}"
        if config["User"] != "10001:10001":
            fail(proof.seen)
    return wheels


def _megabytes(image: str) -> float:
    return float(containers.inspect(image)["Size"]) / 1e6


def _prove_confined(proof: Proof, deployment: Deployment) -> None:
    with proof.step("it runs as 10001, read-only, without capabilities or ways to new ones"):
        seen = json.loads(deployment.program("harvester", _STATE_INSIDE))
        if seen != _CONFINED:
            fail(json.dumps(seen))
        host = containers.inspect(deployment.container("harvester"))["HostConfig"]
        bounds = (host["PidsLimit"], host["Memory"] // 2**20)
        proof.seen = f"{json.dumps(seen)}, at most %d processes and %d MiB" % bounds
        if not all(bound > 0 for bound in bounds):
            fail(proof.seen)


def _prove_kill(proof: Proof, deployment: Deployment) -> None:
    with proof.step("killed in the middle and started again, it has lost nothing"):
        before = _stored(deployment, 10)
        harvester = deployment.container("harvester")
        run("docker", "kill", "--signal", "KILL", harvester)
        until(lambda: not deployment.state()["Running"], "the end of the killed container")
        code = deployment.state()["ExitCode"]
        run("docker", "start", harvester)
        until(lambda: deployment.state()["Running"], "the start")
        after = _stored(deployment, len(before))
        if code != 137 or (changed := set(before.items()) - set(after.items())):
            fail(f"exit code {code}, lost or changed: {changed}")
        proof.seen = f"{len(before)} certificates stored before, all of them after"


def _stored(deployment: Deployment, least: int) -> dict[str, str]:
    """Return what is stored, once it is so many, from a container that is perhaps just starting."""
    found: dict[str, str] = {}

    def are_enough() -> bool:
        with contextlib.suppress(StepFailed):
            found.update(deployment.stored())
        return len(found) >= least

    until(are_enough, f"{least} certificates")
    return found


def _prove_harvest(proof: Proof, deployment: Deployment) -> None:
    with proof.step(f"{ORDERS} orders followed to their ends, every certificate stored"):
        until(lambda: is_settled(deployment.status(), ORDERS), "the end of all orders")
        status = deployment.status()
        proof.seen = f"orders {status['orders']}, certificates {status['certificates']}"
    with proof.step("verify finds every file as the ledger says"):
        proof.seen = " ".join(deployment.inside("harvester", "harvester", "verify").split("\n"))


def _prove_billing(proof: Proof, deployment: Deployment) -> None:
    with proof.step("billing had a signed event of each certificate, once, and read the file"):
        stored = len(deployment.stored())
        until(lambda: len(_invoices(deployment)) >= stored, f"{stored} invoices")
        invoices = _invoices(deployment)
        proof.seen = f"{len(invoices)} invoices for {stored} certificates: {invoices[0]}"
        if len(set(invoices)) != stored or len(invoices) != stored:
            fail(proof.seen)
    with proof.step("billing has another user, reads through the group, and cannot write"):
        proof.seen = deployment.program("billing", _LOOK_AS_BILLING)
        if proof.seen != f"{len(deployment.stored())} 10002 EROFS 0o640":
            fail(proof.seen)
    with proof.step("billing refuses an event that nobody signed"):
        proof.seen = deployment.program("harvester", _UNSIGNED)
        if proof.seen != "401":
            fail(proof.seen)


def _invoices(deployment: Deployment) -> list[str]:
    lines = deployment.logs("billing").splitlines()
    return [line for line in lines if line.startswith("invoice ") and " v1 " in line]


def _prove_health(proof: Proof, deployment: Deployment) -> None:
    def becomes(health: str) -> float:
        return until(lambda: deployment.state()["Health"]["Status"] == health, health, within=120)

    harvester = deployment.container("harvester")
    with proof.step("HEALTHCHECK: healthy, unhealthy while the process stands still, healthy"):
        becomes("healthy")
        run("docker", "kill", "--signal", "STOP", harvester)
        try:
            stopped = becomes("unhealthy")
        finally:
            run("docker", "kill", "--signal", "CONT", harvester)
        again = becomes("healthy")
        proof.seen = f"a check each 2 s tells after {stopped:.0f} s, and again after {again:.0f} s"
    with proof.step("a check costs little"):
        proof.seen = deployment.program("harvester", _COST)


def _prove_one_shots(proof: Proof, deployment: Deployment) -> None:
    drain = ("run", "--drain")
    with proof.step("a drain beside the running daemon leaves the ledger to it"):
        harvester = deployment.container("harvester")
        run("docker", "exec", harvester, "harvester", *drain, exits=_HELD)
        proof.seen = f"exit code {_HELD}"
    deployment.compose("stop", "harvester")
    with proof.step("a wrong configuration and a wrong key are told by exit codes"):
        once = ("run", "--rm", "-T", "-e")
        setting, key = "HARVESTER_LUNE__RATE_LIMIT=many", "HARVESTER_LUNE__API_KEY=wrong"
        deployment.compose(*once, setting, "harvester", "run", exits=_CONFIGURATION)
        deployment.compose(*once, key, "harvester", *drain, exits=_WRONG_KEY)
        proof.seen = f"{_CONFIGURATION} and {_WRONG_KEY}"
    with proof.step("a drain as a container that is gone afterwards"):
        report = json.loads(deployment.once(*drain, "--json"))
        proof.seen = f"{report['orders_seen']} orders seen, exit code {report['exit_code']}"
        if report["orders_seen"] != ORDERS:
            fail(proof.seen)
    deployment.compose("start", "harvester")


def _prove_no_secret(proof: Proof, deployment: Deployment, image: str) -> None:
    with proof.step("no secret in inspect, history or logs"):
        texts = {"history": run("docker", "history", "--no-trunc", image)}
        texts["image"] = json.dumps(containers.inspect(image))
        for service in ("harvester", "billing"):
            texts[f"{service}'s inspect"] = json.dumps(
                containers.inspect(deployment.container(service))
            )
            texts[f"{service}'s logs"] = deployment.logs(service)
        shown = [
            f"{name} in {where}"
            for where, text in texts.items()
            for name, secret in deployment.keys.items()
            if secret in text
        ]
        if shown:
            fail(", ".join(shown))
        proof.seen = f"{len(texts)} texts, {sum(map(len, texts.values()))} characters"


def _prove_stop(proof: Proof, deployment: Deployment) -> None:
    harvester = deployment.container("harvester")
    with proof.step("docker stop ends it within two seconds when it is idle, with exit code 0"):
        took = []
        for _ in range(3):
            run("docker", "start", harvester)
            until(lambda: deployment.state()["Health"]["Status"] == "healthy", "healthy")
            began = time.monotonic()
            run("docker", "stop", harvester)
            took.append(time.monotonic() - began)
            if (code := deployment.state()["ExitCode"]) != 0:
                fail(f"exit code {code}")
        proof.seen = judge(took, _IDLE_STOP_SECONDS)


def _prove_tests(proof: Proof, image: str, wheels: str, flags: Sequence[str]) -> None:
    with proof.step("the whole acceptance suite passes in containers with exactly its flags"):
        tests = f"{image}-tests"
        containers.build(proof, tests, DOCKER / "Dockerfile.tests", wheels=wheels, IMAGE=image)
        proof.seen = f"{' '.join(flags)}: {run_suite(proof, tests, flags)}"


def _prove_nothing_left(proof: Proof, deployment: Deployment) -> None:
    with proof.step("all of it is removed"):
        deployment.remove()
        ours = f"label=com.docker.compose.project={deployment.project}"
        for kind in (("ps", "-a"), ("volume", "ls"), ("network", "ls")):
            if left := run("docker", *kind, "-q", "--filter", ours).split():
                fail(f"docker {kind[0]}: {left}")
