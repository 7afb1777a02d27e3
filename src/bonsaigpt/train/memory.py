"""Peak memory of this process."""

from __future__ import annotations

import sys

__all__ = ["peak_memory_mb"]


def peak_memory_mb() -> float:
    """Peak resident memory in 2^20 bytes; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
