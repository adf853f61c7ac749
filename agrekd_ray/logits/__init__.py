"""What teachers said, computed once: records on disk, read through memory maps. No Ray here."""

from agrekd_ray.logits.cache import EvalLogits, LogitsCache
from agrekd_ray.logits.features import Logits
from agrekd_ray.logits.forms import Form
from agrekd_ray.logits.listing import Listed, listed, prune, verify
from agrekd_ray.logits.record import Key, OutputSettings, read_record, write_record
from agrekd_ray.logits.writer import LogitsWriter

__all__ = [
    "EvalLogits",
    "Form",
    "Key",
    "Listed",
    "Logits",
    "LogitsCache",
    "LogitsWriter",
    "OutputSettings",
    "listed",
    "prune",
    "read_record",
    "verify",
    "write_record",
]
