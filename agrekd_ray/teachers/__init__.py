"""Making teachers: ERM models, their debiased (DFR) versions, and the ensemble drawn from them."""

from agrekd_ray.teachers.dfr import DfrSettings, retrain_head
from agrekd_ray.teachers.ensemble import Draw, EnsembleSettings, TeacherSettings, draw, vote
from agrekd_ray.teachers.pool import Pool, Recipe, measured

__all__ = [
    "DfrSettings",
    "Draw",
    "EnsembleSettings",
    "Pool",
    "Recipe",
    "TeacherSettings",
    "draw",
    "measured",
    "retrain_head",
    "vote",
]
