"""What this process may use of its machine: processors and memory."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
"""What a container may have, of either version of control groups."""
LIMITS = "memory.max", "memory/memory.limit_in_bytes"
"""Its files of limits: without one they say `max`, or a number beyond any machine."""


def usable_cpus() -> int:
    """Processors that this process may use: those it is bound to, and the container's quota."""
    from joblib import cpu_count

    return int(cpu_count())


@cache
def memory() -> int:
    """Bytes of memory: of the machine, or of the container where that is less."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in LIMITS:
        with contextlib.suppress(OSError, ValueError):
            most = min(most, int((GROUP / name).read_text(encoding="utf-8")))
    return most


def free_memory() -> int:
    """Bytes that a program can have: of the machine, or of the container where that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    of_use = (
        ("memory.current", "memory.stat"),
        ("memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
    for limit, (used, table) in zip(LIMITS, of_use, strict=True):
        try:
            most, taken = (
                int((GROUP / name).read_text(encoding="utf-8")) for name in (limit, used)
            )
            lines = (GROUP / table).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        cached = int(dict(line.split() for line in lines).get("inactive_file", 0))
        free = min(free, max(most - taken + cached, 0))
    return free
