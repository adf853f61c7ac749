"""Making teachers: ERM models, their debiased versions, and the ensemble drawn from them."""

from agrekd_ray.teachers.answers import Asked, Take, answers
from agrekd_ray.teachers.dfr import DfrSettings
from agrekd_ray.teachers.ensemble import Draw, EnsembleSettings, TeacherSettings, draw, numbers_of
from agrekd_ray.teachers.kinds import ERM, KINDS, OWN, Kind, family
from agrekd_ray.teachers.pool import Pool, Recipe, measured
from agrekd_ray.teachers.retraining import retrain_head

__all__ = [
    "ERM",
    "KINDS",
    "OWN",
    "Asked",
    "DfrSettings",
    "Draw",
    "EnsembleSettings",
    "Kind",
    "Pool",
    "Recipe",
    "Take",
    "TeacherSettings",
    "answers",
    "draw",
    "family",
    "measured",
    "numbers_of",
    "retrain_head",
]
