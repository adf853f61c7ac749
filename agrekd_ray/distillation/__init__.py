"""Where a step's gradient comes from: records, a fleet of Ray actors, or this process."""

from agrekd_ray.distillation.cached import CachedTeachers, Replay
from agrekd_ray.distillation.distilled import Distilled, LocalTeachers
from agrekd_ray.distillation.host import TeacherHost
from agrekd_ray.distillation.spec import (
    Competence,
    DistillationSpec,
    GradientRequest,
    Source,
    TeacherGradients,
    competence_of,
)

__all__ = [
    "CachedTeachers",
    "Competence",
    "DistillationSpec",
    "Distilled",
    "GradientRequest",
    "LocalTeachers",
    "Replay",
    "Source",
    "TeacherGradients",
    "TeacherHost",
    "competence_of",
]
