"""Where a step's gradient comes from: records, a fleet of Ray actors, or this process."""

from agrekd_ray.guidance.distilled import Distilled, LocalTeachers
from agrekd_ray.guidance.host import TeacherHost
from agrekd_ray.guidance.lesson import Lesson, Question, Replies, Source
from agrekd_ray.guidance.recorded import RecordedTeachers, Replay

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
