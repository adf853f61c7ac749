"""What was measured: records on disk, metrics by name, one tidy table, and intervals.

Records turn into JSON and back without loss, so that a run that was stopped can be completed by
another process from the files alone.
"""

from agrekd_ray.results.metrics import over, part_measured
from agrekd_ray.results.records import (
    ATTEMPTS,
    Agreement,
    Attempt,
    Bin,
    Cost,
    Diagnostics,
    EnsembleCheck,
    Epoch,
    Metrics,
    Span,
    SplitAgreement,
    StudentResult,
    TeacherCheck,
    TeacherCost,
    TeacherResult,
    added,
    degraded,
    epochs_from_json,
    mean_epoch,
    mean_metrics,
)

__all__ = [
    "ATTEMPTS",
    "Agreement",
    "Attempt",
    "Bin",
    "Cost",
    "Diagnostics",
    "EnsembleCheck",
    "Epoch",
    "Metrics",
    "Span",
    "SplitAgreement",
    "StudentResult",
    "TeacherCheck",
    "TeacherCost",
    "TeacherResult",
    "added",
    "degraded",
    "epochs_from_json",
    "mean_epoch",
    "mean_metrics",
    "over",
    "part_measured",
]
