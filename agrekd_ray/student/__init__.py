"""The student: one spec (`student.py`) and its Ray Train shell (`group.py`)."""

from agrekd_ray.student.student import (
    STATE,
    STATES,
    Student,
    StudentSettings,
    StudentSpec,
    read_outcome,
    write_outcome,
)

__all__ = [
    "STATE",
    "STATES",
    "Student",
    "StudentSettings",
    "StudentSpec",
    "read_outcome",
    "write_outcome",
]
