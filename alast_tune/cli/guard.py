"""How a command ends when something is wrong: one line, and an exit code."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from pydantic import ValidationError
from pydantic_settings import SettingsError

from alast_tune.errors import ConfigError, DivergedError, StorageError, WorkersError, explain

P = ParamSpec("P")

TRACKING_INCOMPLETE = 3
"""Exit code: what was to be done is done, but MLflow lacks some of it; the line above says how it gets it."""
STORAGE_FAILED = 4
"""Exit code: a full or broken disk has ended the sweep; ``--resume`` goes on with it."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a person can do something about into one line and an exit code.

    2 for a setting that cannot work, 1 for training that has failed, 4 for a full disk, 130 for an interruption.
    """

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        log, handler = logging.getLogger("alast_tune"), Notes()
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            command(*arguments, **options)
        except ConfigError as error:
            sys.exit(complain(str(error)))
        except ValidationError as error:
            sys.exit(complain(explain(error).removeprefix("train.")))  # settings of the subcommand, in its words
        except SettingsError as error:
            sys.exit(complain(f"{str(error).removeprefix('error parsing CLI: ')}; see --help"))
        except (DivergedError, WorkersError) as error:
            complain(str(error))
            sys.exit(1)
        except StorageError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(STORAGE_FAILED)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        finally:
            log.removeHandler(handler)
            log.setLevel(level)

    return run


class Notes(logging.Handler):
    """Prints what the package has to say, each line once: a command reads the same data and weights several times."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        line = record.getMessage()
        if line not in self._said:
            self._said.add(line)
            print(line if line.startswith("note: ") else f"note: {line}", file=sys.stderr, flush=True)


def complain(line: str) -> int:
    """Say what is wrong, in one line; returns the exit code for a setting that cannot work."""
    print(f"error: {line}", file=sys.stderr)
    return 2
