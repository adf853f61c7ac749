"""`python -m tests.endurance faults | soak`: see `make endurance`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from agrekd_ray.cluster.environment import prepare


def main() -> int:
    """0 where all came out right."""
    parser = argparse.ArgumentParser(prog="tests.endurance")
    parser.add_argument("what", choices=["faults", "soak"])
    parser.add_argument("--tries", type=int, default=3, help="of each row of the fault table")
    parser.add_argument("--rows", nargs="*", default=[""], help="only rows with this in their name")
    parser.add_argument("--raylets", type=int, nargs="*", default=[1, 3], help="of the fault table")
    parser.add_argument("--minutes", type=float, default=60, help="of the soak")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # also where they were switched off
        signal.signal(number, signal.default_int_handler)
    prepare(starts_cluster=True)
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="agrekd-endurance-") as folder:
        if given.what == "faults":
            from .faults import ROWS, Trials

            rows = [row for row in ROWS if any(part in row.name for part in given.rows)]
            sound = Trials(Path(folder), console, given.seed).table(
                rows, given.tries, given.raylets
            )
        else:
            from .soak import soak

            sound = soak(Path(folder), console, given.minutes, given.seed)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
