"""What teachers said, computed once: records on disk, read through memory maps. No Ray here."""

from agrekd_ray.logits.cache import Evaluations, Listed, Outputs, listed, prune, verify
from agrekd_ray.logits.record import Key, OutputSettings, read_record, write_record
from agrekd_ray.logits.writer import Partial

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
