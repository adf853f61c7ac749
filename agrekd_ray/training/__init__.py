"""Training: the step, its batches, its optimiser, and evaluation. No Ray here."""

from agrekd_ray.training.batches import Batch, BatchPlan
from agrekd_ray.training.evaluation import (
    Judge,
    Teaching,
    TeachingRecord,
    agreement,
    calibration,
    evaluate,
    predict,
    score,
)
from agrekd_ray.training.loop import DIVERGED, Guidance, Labels, Taught, Trainer

__all__ = [
    "DIVERGED",
    "Batch",
    "BatchPlan",
    "Guidance",
    "Judge",
    "Labels",
    "Taught",
    "Teaching",
    "TeachingRecord",
    "Trainer",
    "agreement",
    "calibration",
    "evaluate",
    "predict",
    "score",
]
