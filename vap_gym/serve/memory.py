"""How much memory this process holds."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")  # Linux's


def memory_mib() -> dict[str, float]:
    """Return the resident memory now and at its peak, MiB; where the system tells no present figure, the peak alone."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {"peak": round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)}
    if STATUS.is_file():
        now = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
        told["now"] = round(int(now.split()[1]) / 2**10, 1)
    return told
