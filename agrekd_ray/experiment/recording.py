"""Records what a job's teachers say, up front, in one pass over the fleet."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from rich.console import Console

from agrekd_ray.cluster.environment import prepare
from agrekd_ray.config import Job
from agrekd_ray.data import TRAIN, Dataset, open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import RECORDED, Display, ready_data
from agrekd_ray.experiment.engine import Engine
from agrekd_ray.experiment.monitor import show_progress
from agrekd_ray.experiment.plan import Plan, epochs_of, make_plan
from agrekd_ray.experiment.settled import settled
from agrekd_ray.logits import LogitsCache
from agrekd_ray.results import TeacherCost
from agrekd_ray.teachers import Pool


def record_job(job: Job, console: Console) -> TeacherCost:
    """Make the pool's missing teachers and record every view that the job's students are shown.

    Again, it goes on where it was stopped; where all is recorded, it says so and starts nothing.

    Args:
        job: the job.
        console: for progress.

    Returns:
        What the teachers cost.

    Raises:
        AgrekdError: a teacher cannot be made or recorded; what is recorded stays.
    """
    job = settled(job)
    plan, samples = make_plan(job), open_dataset(job.data)
    if not plan.strategies:
        raise RunError(
            f"{job.name}: no method of the job has teachers; there is nothing to record."
        )
    if job.guidance != "auto":
        raise RunError(f"guidance: {job.guidance} keeps no records; set guidance=auto.")
    with Display(console) as display:
        ready_data(samples, display, dfr=job.retrains)
    pool = Pool(job.teachers.store, samples)
    views = sorted({samples.view(epoch) for epoch in range(job.student.training.epochs)})
    checkpoints = plan.checkpoints(pool)
    effort = TeacherCost()
    if missing(job, plan, samples, views):
        prepare(starts_cluster=job.ray.address is None)
        from agrekd_ray.experiment.ray_engine import RayEngine

        with Display(console) as display:
            display.stage("start", 0, "")
            engine = RayEngine(job, functools.partial(show_progress, display))
            try:
                effort = make_and_record(engine, display, job, plan, samples, views)
            finally:
                engine.close()
    outputs = LogitsCache(job.outputs, checkpoints, samples, job.fleet.computes_in)
    several = "views" if len(views) > 1 else "view"
    console.print(
        f"{len(checkpoints)} teachers, {len(views)} {several} of {outputs.count} samples: "
        f"{outputs.bytes() / 1e6:.1f} MB in {job.outputs.store}; {effort.in_words}",
        soft_wrap=True,
    )
    return effort


def missing(job: Job, plan: Plan, samples: Dataset, views: Sequence[int]) -> bool:
    """Whether a teacher has to be made, or something that they say to be recorded."""
    pool = Pool(job.teachers.store, samples)
    if pool.missing(plan.draw.recipes.values()):
        return True
    outputs = LogitsCache(job.outputs, plan.checkpoints(pool), samples, job.fleet.computes_in)
    return bool(outputs.missing(views))


def make_and_record(
    engine: Engine,
    display: Display,
    job: Job,
    plan: Plan,
    samples: Dataset,
    views: Sequence[int],
    *,
    record: bool = True,
) -> TeacherCost:
    """Make the pool's missing teachers, then record what is missing of what they say.

    Args:
        engine: does the work.
        display: the progress line.
        job: the job.
        plan: of the job.
        samples: the data set.
        views: that will be asked for.
        record: false makes the teachers only.

    Returns:
        What the teachers' outputs cost.
    """
    pool = Pool(job.teachers.store, samples)
    families = pool.missing(plan.draw.recipes.values())
    if families:
        display.stage("teachers", epochs_of(families), "epochs")
        engine.make_teachers(families)
    checkpoints = plan.checkpoints(pool)
    left = LogitsCache(job.outputs, checkpoints, samples, job.fleet.computes_in).missing(views)
    if not record or not left:
        return TeacherCost()
    rows = len({view for _, view in left}) * len(samples.splits[TRAIN])
    display.stage("outputs", rows, RECORDED)
    return engine.record(checkpoints, views)
