"""Figures as people read them: three or four digits, the unit that suits, and never ``1e+03 k`` or ``60 min 0 s``.

Each function rounds first and then chooses the unit, as what is rounded up may reach the next one.
"""

from __future__ import annotations

__all__ = ["count", "duration", "named", "quantity", "rate", "size"]

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SIZES = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def named(number: int, what: str) -> str:
    """``1 thread``, ``2,000 steps``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def count(number: float) -> str:
    """``812``, ``803 k``, ``1.54 M``."""
    return quantity(number, "").rstrip()


def quantity(number: float, unit: str) -> str:
    """With three digits and the prefix of a power of a thousand: ``8.12 TFLOP``."""
    for power, prefix in _PREFIXES:
        if _rounded(number, 3) >= power:
            return f"{number / power:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def rate(flops: float) -> str:
    """``41.2 GFLOP/s``."""
    return quantity(flops, "FLOP/s")


def size(held: float) -> str:
    """``12.3 MiB``."""
    for power, unit in _SIZES:
        if _rounded(held / power, 4) >= 1:
            return f"{held / power:,.4g} {unit}"
    return named(round(held), "byte")


def duration(seconds: float) -> str:
    """``40 ms``, ``2.3 s``, ``4 min 10 s``, ``7 h 5 min``, ``3 days 2 h``."""
    if _rounded(1000 * seconds, 3) < 1000:
        return f"{1000 * seconds:.3g} ms"
    if _rounded(seconds, 3) < 60:
        return f"{seconds:.3g} s"
    if (whole := round(seconds)) < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if (minutes := round(seconds / 60)) < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{named(days, 'day')} {hours} h"


def _rounded(number: float, digits: int) -> float:
    return float(f"{number:.{digits}g}")
