"""What teachers said, computed once: records on disk, read through memory maps. No Ray here."""

from agrekd_ray.logits.ahead import read_ahead
from agrekd_ray.logits.cache import EvalLogits, Listed, LogitsCache, listed, prune, verify
from agrekd_ray.logits.forms import Form, Logits, stored
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
    "read_ahead",
    "read_record",
    "stored",
    "verify",
    "write_record",
]
