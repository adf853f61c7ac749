"""Training: the step, its batches, its optimiser, and evaluation. No Ray here."""

from agrekd_ray.training.batches import Batch, BatchPlan
from agrekd_ray.training.ensemble import check_ensemble
from agrekd_ray.training.evaluation import (
    Judge,
    TeacherWeightRecorder,
    TeacherWeightStats,
    agreement,
    calibration,
    evaluate,
    filling,
    predict,
    score,
)
from agrekd_ray.training.guidance import Guidance, Labels, label_guidance
from agrekd_ray.training.loader import Column, Loaded, Loader, Request
from agrekd_ray.training.loop import DIVERGED, Trainer

__all__ = [
    "DIVERGED",
    "Batch",
    "BatchPlan",
    "Column",
    "Guidance",
    "Judge",
    "Labels",
    "Loaded",
    "Loader",
    "Request",
    "TeacherWeightRecorder",
    "TeacherWeightStats",
    "Trainer",
    "agreement",
    "calibration",
    "check_ensemble",
    "evaluate",
    "filling",
    "label_guidance",
    "predict",
    "score",
]
