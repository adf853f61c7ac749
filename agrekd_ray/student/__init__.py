"""The student: one assignment (`student.py`) and its Ray Train shell (`group.py`)."""

from agrekd_ray.student.student import (
    Assignment,
    Student,
    StudentSettings,
    load_student,
    read_outcome,
    write_outcome,
)

__all__ = [
    "Assignment",
    "Student",
    "StudentSettings",
    "load_student",
    "read_outcome",
    "write_outcome",
]
