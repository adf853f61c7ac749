"""Records what a job's teachers say, up front, in one pass over the fleet."""

from __future__ import annotations

import functools

from rich.console import Console

from agrekd_ray.config import Job
from agrekd_ray.data import TRAIN, open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.outputs import Outputs
from agrekd_ray.run.display import Display
from agrekd_ray.run.engine import Effort
from agrekd_ray.run.environment import prepare
from agrekd_ray.run.monitor import show_progress
from agrekd_ray.run.plan import epochs_of, make_plan
from agrekd_ray.teachers import Pool


def record_job(job: Job, console: Console) -> Effort:
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
    plan, samples = make_plan(job), open_dataset(job.data)
    if not plan.strategies:
        raise RunError(
            f"{job.name}: no method of the job has teachers; there is nothing to record."
        )
    if job.guidance != "auto":
        raise RunError(f"guidance: {job.guidance} keeps no records; set guidance=auto.")
    pool = Pool(job.teachers.store, samples)
    views = sorted({samples.view(epoch) for epoch in range(job.student.training.epochs)})
    families = pool.missing(plan.draw.recipes.values())
    checkpoints = plan.checkpoints(pool)

    def recorded() -> Outputs:
        return Outputs(job.outputs, checkpoints, samples, job.fleet.autocast)

    effort = Effort()
    if families or recorded().missing(views):
        prepare(starts_cluster=job.ray.address is None)
        from agrekd_ray.run.cluster import RayEngine  # imports Ray, which reads the environment

        with Display(console) as display:
            display.stage("start", 0, "")
            engine = RayEngine(job, functools.partial(show_progress, display))
            try:
                if families:
                    display.stage("teachers", epochs_of(families), "epochs")
                    engine.make_teachers(families)
                left = {view for _, view in recorded().missing(views)}
                display.stage("outputs", len(left) * len(samples.splits[TRAIN]), "samples")
                effort = engine.record(checkpoints, views)
            finally:
                engine.close()
    outputs = recorded()
    console.print(
        f"{len(checkpoints)} teachers, {len(views)} views of {outputs.count} samples: "
        f"{outputs.bytes() / 1e6:.1f} MB in {job.outputs.store}; {effort.in_words}",
        highlight=False,
        soft_wrap=True,
    )
    return effort
