"""How a command ends when something is wrong: one line, and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from pydantic import ValidationError
from pydantic_settings import SettingsError

from alast_tune.cli.launch import launched_rank
from alast_tune.errors import (
    TRACEBACK,
    ConfigError,
    DivergedError,
    InterruptedTrainingError,
    NothingCompleteError,
    StorageError,
    VerificationError,
    WorkersError,
    explain,
)
from alast_tune.text import one_line, safe

P = ParamSpec("P")

FAILED = 1
"""Exit code: training has failed, or something that nobody foresaw."""
NOT_POSSIBLE = 2
"""Exit code: a setting cannot work."""
TRACKING_INCOMPLETE = 3
"""Exit code: what was to be done is done, but MLflow lacks some of it; the line above says how it gets it."""
STORAGE_FAILED = 4
"""Exit code: a full or broken disk has ended the sweep; ``--resume`` goes on with it."""
NOTHING_COMPLETE = 5
"""Exit code: a sweep has ended, and none of its trials is complete."""
INTERRUPTED = 130
TERMINATED = 143

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn whatever ends a command into one line and an exit code.

    1 for training that has failed and for what nobody foresaw, 2 for a setting that cannot work, 3 if MLflow lacks
    something, 4 for a full or broken disk or database, 5 for a sweep without one complete trial, 130 if interrupted,
    143 if terminated.
    """

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        log, handler = logging.getLogger("alast_tune"), Notes()
        level = log.level
        if not launched_rank():  # of several processes the first one speaks
            log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # whoever read the output has gone: `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(FAILED)
        except Exception as error:
            if os.environ.get(TRACEBACK) == "1":
                print(safe("".join(traceback.format_exception(error))), file=sys.stderr)
            line, code = exit_line_and_code(error)
            complain(line)
            sys.exit(code)
        finally:
            log.removeHandler(handler)
            log.setLevel(level)

    return run


def exit_line_and_code(error: BaseException) -> tuple[str, int]:
    """Say what has ended a command, and with which exit code; see :func:`guarded`."""
    worker = getattr(error, "cause", None)
    if isinstance(worker, Exception):  # Ray's, of what has ended a task
        error = worker
    match error:
        case ConfigError():
            return str(error), NOT_POSSIBLE
        case ValidationError():
            return explain(error).removeprefix("train."), NOT_POSSIBLE  # settings of the subcommand, in its words
        case SettingsError():
            return f"{str(error).removeprefix('error parsing CLI: ')}; see --help", NOT_POSSIBLE
        case DivergedError() | VerificationError() | WorkersError():
            return str(error), FAILED
        case InterruptedTrainingError():
            return str(error), TERMINATED
        case StorageError():
            return str(error), STORAGE_FAILED
        case NothingCompleteError():
            return str(error), NOTHING_COMPLETE
    more = f"; {TRACEBACK}=1 shows all of it"
    disk = isinstance(error, OSError) and error.errno in _DISK
    database = any(kind.__module__.startswith("sqlalchemy.") for kind in type(error).__mro__)  # seconds to import
    return one_line(error) + more, STORAGE_FAILED if disk or database else FAILED


class Notes(logging.Handler):
    """Prints what the package has to say, each line once: a command reads the same data and weights several times."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        line = safe(record.getMessage())
        if line not in self._said:
            self._said.add(line)
            print(line if line.startswith("note: ") else f"note: {line}", file=sys.stderr, flush=True)


def complain(line: str) -> None:
    """Say what is wrong, in one line."""
    print(f"error: {safe(' '.join(line.split()))}", file=sys.stderr)
