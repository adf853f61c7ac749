"""The data of a run made ready, before anything else: prepared, and what is of note said."""

from __future__ import annotations

import contextlib

from agrekd_ray.cluster.environment import prepare
from agrekd_ray.config import Job
from agrekd_ray.config.points import remarks_on_biased
from agrekd_ray.data import (
    DRAWN,
    Dataset,
    Prepared,
    Sourced,
    open_dataset,
    remarks_on,
    splits_in_words,
)
from agrekd_ray.data.prepared_samples import PreparedSamples
from agrekd_ray.experiment.display import Display
from agrekd_ray.teachers import Pool


def prepare_data(dataset: Dataset, display: Display, job: Job | None = None) -> None:
    """Prepare what is still to be, so that the workers of a run find it.

    Args:
        dataset: the data.
        display: to show progress on.
        job: that they are of: where it runs on a cluster that was there before, the nodes prepare
            them together. None prepares them in this process.

    Raises:
        DataError: a sample is broken, or the copy cannot be written.
        RunError: the cluster cannot be reached, or a process there died over and over.
    """
    if not isinstance(dataset, Prepared) or not (left := dataset.unprepared()):
        return
    shown = dataset.size - left
    display.stage("data", dataset.size, "samples", shown)

    def progress(done: int, total: int) -> None:
        nonlocal shown
        display.advance("", done - shown)
        shown = done

    address = job.ray.address if job is not None and job.guidance != "local" else None
    if job is None or address is None or not isinstance(dataset, PreparedSamples):
        dataset.prepare(progress)
        return
    prepare(starts_cluster=False)
    from agrekd_ray.cluster.session import RaySession  # imports Ray, which reads the environment
    from agrekd_ray.experiment.prepare_tasks import prepare_on_nodes

    with contextlib.closing(RaySession(address, 1, display.note, job.plugins)):
        prepare_on_nodes(dataset, job.data, progress, display.remark)


def note_drawn_splits(dataset: Dataset, display: Display) -> None:
    """Say it where the splits were drawn, with their sizes; nobody asked for that."""
    if isinstance(dataset, Sourced) and dataset.splits_from == DRAWN:
        display.remark(f"splits: {splits_in_words(dataset)}")


def ready_data(dataset: Dataset, display: Display, job: Job) -> None:
    """Prepare the data of a run, and say what is of note of them.

    Args:
        dataset: of the run.
        display: to say it on.
        job: of the run.

    Raises:
        DataError: see `prepare_data`.
    """
    note_drawn_splits(dataset, display)
    prepare_data(dataset, display, job)
    for remark in remarks_on(dataset, dfr=job.retrains):
        display.remark(f"data: {remark}")


def note_biased_teacher(job: Job, display: Display) -> None:
    """Say it where the biased model is a teacher, too; the data are prepared."""
    pool = Pool(job.teachers.store, open_dataset(job.data))
    for remark in remarks_on_biased(job, pool):
        display.remark(f"ensemble: {remark}")
