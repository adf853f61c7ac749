"""The points of a study: a job each, checked before anything starts."""

from __future__ import annotations

from agrekd_ray.config.checks import check_job
from agrekd_ray.config.faults import JobError
from agrekd_ray.config.job import Job
from agrekd_ray.config.study import raw_points
from agrekd_ray.config.sweep import Setting
from agrekd_ray.data import open_dataset, remarks_on
from agrekd_ray.teachers import Pool, draw


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


def remarks_on_biased(job: Job, pool: Pool | None = None) -> list[str]:
    """A line where the biased model of a job, or of a study's points, is one of the teachers.

    Args:
        job: sound.
        pool: of its teachers, for a job that may name one of them by its folder.
    """
    points = [Job.model_validate(raw) for _, raw in raw_points(job)]
    return list(dict.fromkeys(line for point in points for line in _on_biased(point, pool)))


def _on_biased(job: Job, pool: Pool | None) -> list[str]:
    ensemble, drawn = job.ensemble, draw(job.ensemble, job.teachers)
    places = {name: pool.folder(recipe) if pool else name for name, recipe in drawn.recipes.items()}
    places |= drawn.own
    alone = all(places[name] != places[drawn.biased] for name in drawn.teachers)
    if alone or "agre_kd" not in job.methods or not job.distillation.agre_kd.normalize:
        return []
    keys = ["ensemble.biased_from: outside"] * (ensemble.biased_from != "outside")
    keys += [f"teachers.count: {ensemble.size + 1}"] * (ensemble.size >= job.teachers.count)
    remedy = f"{' and '.join(keys)} would draw another"
    if ensemble.biased is not None:
        remedy = "ensemble.biased may name another"
    return [f"the biased model is a teacher, too, whom agre_kd then gives no weight; {remedy}"]


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
