"""Text that somebody else has written: made fit for a terminal, a log or a page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_SECRETS = r"password|passwd|pwd|secret|secret_?key|token|api_?key|access_?key|access_?key_?id|signature|credential"

_LOGIN = re.compile(r"(:/{1,2})([^\s/?#@:'\"]*):(?!\d+(?:[/?#,;)'\"\s]|\Z))\S*@(?=[^\s@])")
"""User and password of an address. A password may hold what should have been quoted in it, even a slash; a port is
none. A path writes ``://`` with one slash."""
_WEB_LOGIN = re.compile(r"(\bhttps?:/{1,2})[^\s/?#]*@")
"""Of a web address the user as well: it may be a token."""
_BARE_LOGIN = re.compile(r"(?<![\w:/.])([\w.+-]+):[^\s/@]+@(?=[\w.-]+:\d)")
"""The same before ``HOST:PORT`` alone."""
_NAMED = re.compile(rf"(?i)(?<![a-z])((?:[a-z0-9]+[-_])*(?:{_SECRETS})['\"]?\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s&;,'\")]+)")
_QUOTED = re.compile(rf"(?i)(['\"](?:[a-z0-9]+[-_])*(?:{_SECRETS})['\"]\s*:\s*)('[^']*'|\"[^\"]*\")")
_HEADER = re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer)\s+)[^\s'\"]+")

_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of Unicode: escape sequences begin with one, and others turn the direction of a line."""


def without_passwords(text: str) -> str:
    """Hide the passwords and tokens of addresses, queries and headers in a text."""
    text = _BARE_LOGIN.sub(r"\1:...@", _LOGIN.sub(r"\1\2:...@", text))
    text = _WEB_LOGIN.sub(r"\1", text)
    for pattern in (_NAMED, _QUOTED, _HEADER):
        text = pattern.sub(r"\1...", text)
    return text


def printable(text: str) -> str:
    """Replace control characters, a terminal's escape sequences among them, but for ends of lines and tabs."""
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _CONTROLS else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def safe(text: object) -> str:
    """Make a text fit to be shown: no passwords, no control characters."""
    return without_passwords(printable(str(text)))


def one_line(error: BaseException) -> str:
    """Say in one line what an error of another library is: its kind, and of a long text the part that tells.

    SQLAlchemy puts its own words around the database's; Ray ends a worker's traceback with the error.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):  # Ray's, of an error in a worker
        error = cause
    original = getattr(error, "orig", None)
    lines = [line.strip() for line in str(original or error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    traced = any(line.startswith(("Traceback ", 'File "')) or "ray::" in line for line in lines)
    found = safe(lines[-1] if traced else lines[0])
    return found if traced else f"{type(error).__name__}: {found}"


def short_number(value: Any) -> str:
    """Write a number with two digits, no zero before the point: ``.6``, ``3e-4``."""
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 1e-3:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    text = f"{value:.2g}"
    return text.removeprefix("0") if text.startswith("0.") else text


def shorten_list(names: Iterable[str], limit: int = 6) -> str:
    """List the first few of many names."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
