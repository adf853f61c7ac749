"""The points of a study: a job each, checked before anything starts."""

from __future__ import annotations

from agrekd_ray.config.checks import check_job
from agrekd_ray.config.faults import JobError
from agrekd_ray.config.job import Job
from agrekd_ray.config.study import raw_points
from agrekd_ray.config.sweep import Setting
from agrekd_ray.data import open_dataset, remarks_on


def remarks_of(job: Job) -> list[str]:
    """What somebody should know of the data of a sound job, or of a study's points."""
    points = [Job.model_validate(raw) for _, raw in raw_points(job)]
    distinct = {(point.data.model_dump_json(), point.retrains): point.data for point in points}
    return list(
        dict.fromkeys(
            remark
            for (_, dfr), settings in distinct.items()
            for remark in remarks_on(open_dataset(settings), dfr=dfr)
        )
    )


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
