"""The command line. Modules are light: what a command needs is imported when it runs."""

from __future__ import annotations

import gc
import os
import sys
import threading

import click

from harvester import __version__
from harvester.cli.db import db
from harvester.cli.demo import demo
from harvester.cli.doctor import doctor
from harvester.cli.events import events
from harvester.cli.exits import EXIT_CODES, exit_code_of, explain
from harvester.cli.follow import retry, track
from harvester.cli.healthcheck import healthcheck
from harvester.cli.invocation import Invocation, pass_invocation
from harvester.cli.order import order, quote
from harvester.cli.orders import export, orders, show
from harvester.cli.process import handle_sigterm, occupy_standard_streams
from harvester.cli.run import run
from harvester.cli.sandbox import command as sandbox
from harvester.cli.status import status
from harvester.cli.verify import verify
from harvester.cli.webhooks import webhooks

_EPILOG = "Exit codes: " + " · ".join(f"{code} {text}" for code, text in EXIT_CODES.items())


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="harvester")
@pass_invocation
def cli(_invocation: Invocation) -> None:
    """Follow carbon-credit orders at Lune and file their certificates.

    Start with `harvester demo`; then write a config.toml (see config.example.toml), check it with
    `harvester doctor`, and `harvester run`.
    """


_COMMANDS = (
    demo,
    run,
    track,
    order,
    quote,
    orders,
    show,
    status,
    retry,
    verify,
    events,
    export,
    doctor,
    healthcheck,
    sandbox,
    webhooks,
    db,
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line and end the process with a code of the table."""
    threading.excepthook = _end_with_a_thread
    occupy_standard_streams()
    handle_sigterm()
    try:
        cli.main(standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that went away is no fault
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away: nothing left to say, and no second complaint
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last door: every fault gets its exit code
        explain(error)
        sys.exit(exit_code_of(error))
    finally:
        # What is left goes with the process. To look through it for cycles first, as the
        # interpreter does, takes longer than many a command.
        gc.freeze()


def _end_with_a_thread(fault: threading.ExceptHookArgs) -> None:
    """End the process with any of its threads: who waits for its answer would wait for ever.

    At once and without clearing up, as by a kill, which every state on disk is ready for.
    """
    threading.__excepthook__(fault)
    os._exit(1)
