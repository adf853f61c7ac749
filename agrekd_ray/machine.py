"""What this process may use of its machine: processors and memory."""

from __future__ import annotations

from pathlib import Path


def usable_cpus() -> int:
    """Processors that this process may use: those it is bound to, and the container's quota."""
    from joblib import cpu_count

    return int(cpu_count())


def free_memory() -> int:
    """Bytes that a program can have: of the machine, or of the container where that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    for limit, used, table in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:  # without a limit the file says "max", or a number beyond any machine
            most, taken = (
                int((group / name).read_text(encoding="utf-8")) for name in (limit, used)
            )
            lines = (group / table).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        cached = int(dict(line.split() for line in lines).get("inactive_file", 0))
        free = min(free, max(most - taken + cached, 0))
    return free
