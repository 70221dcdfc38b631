"""What other code adds to this program under a name: methods and data sets.

Registered in this process, or by an entry point of the kind's group, which every process that has the package installed
finds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

_HERE: dict[str, dict[str, Any]] = {}
"""Group -> name -> what is registered in this process."""


def registered_here(group: str) -> dict[str, Any]:
    """Give what is registered in this process, by name; what is put into it is registered."""
    return _HERE.setdefault(group, {})


def entries_of(group: str) -> tuple[EntryPoint, ...]:
    """Find the entry points of a group, none of them loaded."""
    return _entries(group, tuple(sys.path))


@cache
def _entries(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Look once for each ``sys.path``: all that is installed is looked at, which takes tens of milliseconds."""
    return tuple(entry_points(group=group))


def all_registered() -> dict[str, dict[str, Any]]:
    """Give what is registered in this process, by group and name, for another process."""
    return {group: dict(named) for group, named in _HERE.items() if named}


def register_all(registered: Mapping[str, Mapping[str, Any]]) -> None:
    """Register what another process has: its :func:`all_registered`."""
    for group, named in registered.items():
        registered_here(group).update(named)
