"""The points of a study: a job each, checked before anything starts."""

from __future__ import annotations

from agrekd_ray.config.checks import check_job
from agrekd_ray.config.faults import JobError
from agrekd_ray.config.job import Job
from agrekd_ray.config.study import raw_points
from agrekd_ray.config.sweep import Setting


def points_of(job: Job) -> list[tuple[Setting, Job]]:
    """Every point of a study with the job that it comes down to; one for a job without a sweep.

    Raises:
        JobError: a point is no valid job.
    """
    points = []
    for setting, raw in raw_points(job):
        point, faults = check_job(raw)
        if faults or point is None:
            raise JobError(f"{job.name}, {setting.label}", faults)
        points.append((setting, point))
    return points
