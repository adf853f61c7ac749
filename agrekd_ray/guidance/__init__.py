"""Where a step's gradient comes from: teachers in this process, or a fleet of Ray actors."""

from agrekd_ray.guidance.distilled import Distilled, LocalTeachers
from agrekd_ray.guidance.host import TeacherHost
from agrekd_ray.guidance.lesson import Answer, Lesson, Question, Replies, Source

__all__ = [
    "Answer",
    "Distilled",
    "Lesson",
    "LocalTeachers",
    "Question",
    "Replies",
    "Source",
    "TeacherHost",
]
