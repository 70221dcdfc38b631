"""Quantities as people read them."""

from __future__ import annotations

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def human_flops(flops: float) -> str:
    """Write FLOPs for people, in powers of 1000: ``human_flops(2.13e15) == "2.13 PFLOP"``."""
    factor, unit = flop_unit(flops)
    return f"{_digits(flops / factor)} {unit}"


def human_bytes(size: float) -> str:
    """Write bytes for people, in powers of 1024: ``human_bytes(3 << 20) == "3.00 MiB"``."""
    factor, unit = byte_unit(size)
    return f"{_digits(size / factor)} {unit}"


def short(value: object) -> str:
    """Write a setting for a table or a label, a real number with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def flop_unit(flops: float) -> tuple[float, str]:
    """Choose the unit that suits so many FLOPs: its size in FLOPs, its name."""
    power = _power(flops, 1000)
    return float(1000**power), f"{PREFIXES[power]}FLOP"


def byte_unit(size: float) -> tuple[float, str]:
    """Choose the unit that suits so many bytes: its size in bytes, its name."""
    power = _power(size, 1024)
    return float(1024**power), "B" if power == 0 else f"{PREFIXES[power].upper()}iB"


def time_unit(seconds: float) -> tuple[float, str]:
    """Choose the unit that suits so many seconds: its size in seconds, its name."""
    return (3600.0, "h") if seconds >= 7200 else (60.0, "min") if seconds >= 120 else (1.0, "s")


def _power(value: float, base: int) -> int:
    return max((power for power in range(len(PREFIXES)) if abs(value) >= base**power), default=0)


def _digits(value: float) -> str:
    """Write three digits without an exponent."""
    if value == 0:
        return "0"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
