"""Where a step's gradient comes from: records, a fleet of Ray actors, or this process."""

from agrekd_ray.distillation.cached import RecordedTeachers, Replay
from agrekd_ray.distillation.distilled import Distilled, LocalTeachers
from agrekd_ray.distillation.host import TeacherHost
from agrekd_ray.distillation.spec import Lesson, Question, Replies, Source

__all__ = [
    "Distilled",
    "Lesson",
    "LocalTeachers",
    "Question",
    "RecordedTeachers",
    "Replay",
    "Replies",
    "Source",
    "TeacherHost",
]
