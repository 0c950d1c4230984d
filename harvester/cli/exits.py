"""Exit codes: one table for all commands."""

from __future__ import annotations

import sys
import traceback

EXIT_CODES = {
    0: "done",
    1: "unexpected fault",
    2: "usage",
    3: "finished, but something owed could not be had",
    75: "another harvester holds the ledger",
    77: "the API refuses the key",
    78: "configuration",
    130: "interrupted",
}

DONE = 0
FAULT = 1
USAGE = 2
UNFINISHED = 3
HELD = 75
REFUSED = 77
CONFIGURATION = 78
INTERRUPTED = 130


def exit_code_of(error: BaseException) -> int:
    """Return the table's code for an error that ended a command."""
    from harvester.domain import errors

    for kind, code in (
        (errors.ConfigurationError, CONFIGURATION),
        (errors.LedgerHeld, HELD),
        (errors.KeyRefused, REFUSED),
        (errors.KeyTaken, USAGE),
        (errors.OutcomeUnknown, UNFINISHED),
        (errors.StorageUnavailable, UNFINISHED),
        (errors.LuneError, UNFINISHED),
    ):
        if isinstance(error, kind):
            return code
    return FAULT


def explain(error: BaseException) -> None:
    """Say on stderr what went wrong: a line for what we know, a traceback for what we do not."""
    from harvester.domain import errors
    from harvester.logs import is_journal

    if not isinstance(error, errors.HarvesterError):
        traceback.print_exception(error)  # without locals: one may be the key
        return
    priority = "<3>" if is_journal(sys.stderr) else ""
    problems = error.problems if isinstance(error, errors.ConfigurationError) else [error]
    for problem in problems:
        print(f"{priority}Error: {problem}", file=sys.stderr)  # noqa: T201 - what a command ends with, logs or not
