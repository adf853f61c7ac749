"""Teachers of the pool that several workers train together: in groups, as a job's students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agrekd_ray.cluster.events import Emit
from agrekd_ray.cluster.nodes import DriverData, cluster_nodes
from agrekd_ray.cluster.placement import ResourceRequest, place
from agrekd_ray.experiment.engine import make_family
from agrekd_ray.student.group import GroupWork, part_of_worker, train_group
from agrekd_ray.teachers import Pool, Recipe


@dataclass(frozen=True)
class TeacherWorkers:
    """The workers of a group that trains teachers; see `student.group.Workers`."""

    workers: int
    takes: dict[str, float]
    timeout_minutes: float
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherWork(GroupWork):
    """Families of models that are made; see `GroupWork`.

    Attributes:
        families: see `Pool.make`.
        store: folder of the pool, reachable from every worker.
        data: that they are trained on.
        training: folder of the groups' own files.
        emit: tells the driver.
        call: see `GroupWork`.
    """

    families: Sequence[Sequence[Recipe]]
    store: Path
    data: DriverData
    training: Path
    emit: Emit
    call: str = ""
    what = "training the teachers"

    @property
    def names(self) -> Sequence[str]:
        """See `GroupWork.names`."""
        return [family[0].name for family in self.families]

    def finished(self, number: int) -> bool:
        """See `GroupWork.finished`; what the pool has already may be damaged."""
        return self._mark(number).exists()

    def opened(self) -> Callable[[int], None]:
        """See `GroupWork.opened`."""
        dataset = self.data.open()
        pool, part = Pool(self.store, dataset), part_of_worker(dataset, "synchronised")
        device, first = part.pop("device"), part["rank"] == 0

        def make(number: int) -> None:
            tell = self.emit if first else _nobody
            make_family(pool, self.families[number], device, tell, **part)
            if first:
                self._mark(number).touch()

        return make

    def _mark(self, number: int) -> Path:
        return self.groups / f"made-{number}"


def _nobody(event: object) -> None:
    """Tells nobody: the first worker does."""


def make_in_groups(
    families: Sequence[Sequence[Recipe]],
    store: Path,
    data: DriverData,
    folder: Path,
    emit: Emit,
    room: Sequence[ResourceRequest],
    timeout_minutes: float,
    groups: int,
) -> None:
    """Make families of models in worker groups, each family by one; returns when all are made.

    Args:
        families: that need nothing of each other.
        store: folder of the pool.
        data: that they are trained on.
        folder: for the groups' own files, reachable from every worker.
        emit: tells the driver.
        room: of the workers of a group.
        timeout_minutes: that they wait for one that does not come to a step.
        groups: that find room side by side.

    Raises:
        AgrekdError: what a worker raised, or a group failed over and over.
    """
    work = TeacherWork(families, store, data, folder, emit)
    workers = TeacherWorkers(len(room), dict(room[0].resources), timeout_minutes)

    def another(at_work: int, begun: int) -> bool:
        all_begun = begun == at_work < groups
        return all_begun and not place(room, cluster_nodes(), free=True).without_room

    train_group(work, workers, another)
