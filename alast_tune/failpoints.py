"""Named places where a test ends the process, as a power cut would.

Each place is a window between two writes that a crash could separate. ``ALAST_FAILPOINT`` names one of them, or
several: ``after-ask``, ``mid-epoch:3`` (the third time that this process passes it), ``mid-epoch:3,after-save``. Where
the variable is not set, and only tests set it, nothing happens.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "ALAST_FAILPOINT"

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """End this process by SIGKILL if a test asks for that at this place."""
    for wanted in filter(None, os.environ.get(VARIABLE, "").split(",")):
        place, _, times = wanted.partition(":")
        if place == name:
            _passed[name] += 1
            if _passed[name] == int(times or 1):
                os.kill(os.getpid(), signal.SIGKILL)
