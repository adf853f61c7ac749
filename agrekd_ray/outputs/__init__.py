"""What teachers said, computed once: records on disk, read through memory maps. No Ray here."""

from agrekd_ray.outputs.partial import Partial
from agrekd_ray.outputs.record import Key, OutputSettings, read_record, write_record
from agrekd_ray.outputs.store import (
    Evaluations,
    Listed,
    Outputs,
    listed,
    prune,
    verify,
)

__all__ = [
    "Evaluations",
    "Key",
    "Listed",
    "OutputSettings",
    "Outputs",
    "Partial",
    "listed",
    "prune",
    "read_record",
    "verify",
    "write_record",
]
