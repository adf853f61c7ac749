"""The teachers' side of a run: their records, and a fleet for as long as something is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from agrekd_ray.config import Job
from agrekd_ray.data import Samples
from agrekd_ray.events import Event, Note, OutputsDone, Post, StudentEpoch
from agrekd_ray.guidance import Replay, Source
from agrekd_ray.guidance.fleet import Fleet
from agrekd_ray.outputs import Outputs
from agrekd_ray.results import Effort


@dataclass(frozen=True)
class Given:
    """A source that is the same in every process; may travel."""

    source: Source

    def __call__(self, samples: Samples) -> Source:
        """The source, as it is."""
        return self.source


class Teaching(AbstractContextManager["Teaching"]):
    """Starts teachers where something must be computed, and releases them when nothing is.

    Args:
        job: the job.
        checkpoints: folders of the teachers and the biased model, by name; may be empty.
        samples: the data set.
        views: that will be asked for.
        post: tells the driver.
    """

    def __init__(
        self,
        job: Job,
        checkpoints: Mapping[str, Path],
        samples: Samples,
        views: Sequence[int],
        post: Post,
    ) -> None:
        self._job, self._checkpoints, self._samples = job, checkpoints, samples
        self._views, self._post = views, post
        self._fleet: Fleet | None = None
        self._outputs: Outputs | None = None
        self._missing: list[tuple[str, int]] = []
        self.effort = Effort()
        """What the teachers cost so far."""
        if checkpoints and job.guidance == "auto":
            self._outputs = Outputs(job.outputs, checkpoints, samples, job.fleet.autocast)
            self._missing = self._outputs.missing(views)
            self._say_damaged(self._outputs)
            self._outputs.touch()

    def source(self) -> Callable[[Samples], Source] | None:
        """Opens a student's source in any process; the fleet is started where it is needed."""
        if not self._checkpoints:
            return None
        if self._outputs is None:
            return Given(self._start().source())
        fleet = self._start().source() if self._missing else None
        return Replay(self._job.outputs, self._checkpoints, self._job.fleet.autocast, fleet)

    def record(self) -> None:
        """Record every view that is missing, in one pass over the fleet.

        Raises:
            AgrekdError: what a teacher raised.
        """
        views = sorted({view for _, view in self._missing})
        if not views:
            return
        fleet = self._start()
        actors = len(fleet.actors)
        rows = self._outputs.count if self._outputs else 0
        for view in views:

            def step(done: int, view: int = view) -> None:
                self._post(OutputsDone(view, done / actors))

            fleet.record(view, rows, step)

    def watch(self, event: Event) -> None:
        """Release the teachers as soon as nothing more will be asked of them."""
        if isinstance(event, StudentEpoch) and self._fleet and self._outputs:
            self._missing = [
                (name, view)
                for name, view in self._missing
                if self._outputs.read(name, view) is None
            ]
            if not self._missing:
                self._release()
                self._post(Note("the teachers' outputs are recorded; their actors are released"))

    def __exit__(self, *failure: object) -> None:
        self._release(count=failure[1] is None)

    def _start(self) -> Fleet:
        job = self._job
        self._fleet = Fleet(
            self._checkpoints,
            job.data,
            job.fleet,
            self._post,
            outputs=job.outputs if self._outputs else None,
            workers=job.student.workers,
            cpus_taken=job.student.workers * job.student.cpus,
        )
        self.effort = Effort(actors=len(self._fleet.actors))
        return self._fleet

    def _release(self, *, count: bool = True) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            forwards, seconds = (fleet.forwards(), fleet.seconds()) if count else (0, 0.0)
            fleet.close()
            recorded = self._outputs.bytes() if self._outputs else 0
            self.effort = Effort(self.effort.actors, forwards, recorded, seconds)

    def _say_damaged(self, outputs: Outputs) -> None:
        damaged = [outputs.path(*one) for one in self._missing if outputs.path(*one).exists()]
        if damaged:
            self._post(
                Note(
                    f"{len(damaged)} damaged records of teachers' outputs are computed again "
                    f"(the first is {damaged[0]})"
                )
            )
