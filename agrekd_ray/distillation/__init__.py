"""Where a step's gradient comes from: records, a fleet of Ray actors, or this process."""

from agrekd_ray.distillation.cached import CachedTeachers, Replay
from agrekd_ray.distillation.distilled import Distilled, LocalTeachers
from agrekd_ray.distillation.host import TeacherHost
from agrekd_ray.distillation.spec import DistillationSpec, GradientRequest, Source, TeacherGradients

__all__ = [
    "CachedTeachers",
    "DistillationSpec",
    "Distilled",
    "GradientRequest",
    "LocalTeachers",
    "Replay",
    "Source",
    "TeacherGradients",
    "TeacherHost",
]
