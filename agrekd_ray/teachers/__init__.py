"""Making teachers: ERM models, their debiased (DFR) versions, and the ensemble drawn from them."""

from agrekd_ray.teachers.answers import Asked, Take, answers
from agrekd_ray.teachers.dfr import DfrSettings, retrain_head
from agrekd_ray.teachers.ensemble import Draw, EnsembleSettings, TeacherSettings, draw
from agrekd_ray.teachers.pool import Pool, Recipe, measured

__all__ = [
    "Asked",
    "DfrSettings",
    "Draw",
    "EnsembleSettings",
    "Pool",
    "Recipe",
    "Take",
    "TeacherSettings",
    "answers",
    "draw",
    "measured",
    "retrain_head",
]
