"""Records what a job's teachers say, up front, in one pass over the fleet."""

from __future__ import annotations

import functools

from rich.console import Console

from agrekd_ray.config import Job
from agrekd_ray.data import open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.driver import open_engine
from agrekd_ray.experiment.monitor import show_progress
from agrekd_ray.experiment.plan import make_plan, views_of
from agrekd_ray.experiment.preparing import ready_data
from agrekd_ray.experiment.settled import settled
from agrekd_ray.experiment.work import Work
from agrekd_ray.results import TeacherCost


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
        ready_data(samples, display, job)
    work = Work.of(job, plan, job.runs)
    work.recipes = list(plan.draw.recipes.values())  # nobody else is recorded
    views = views_of(samples, job.student.training.epochs)
    cost = TeacherCost()
    if work.pool.missing(work.recipes) or work.cache().missing(views):
        with Display(console) as display:
            display.stage("start", 0, "")
            engine = open_engine(job, functools.partial(show_progress, display))
            try:
                work.make_teachers(engine, display)
                cost = work.record(engine, display, views)
            finally:
                engine.close()
    cache = work.cache()
    several = "views" if len(views) > 1 else "view"
    console.print(
        f"{len(work.checkpoints)} teachers, {len(views)} {several} of {cache.count} samples: "
        f"{cache.bytes() / 1e6:.1f} MB in {job.outputs.store}; {cost.in_words}",
        soft_wrap=True,
    )
    return cost
