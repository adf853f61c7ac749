"""What a job's finished models say to the splits that nobody trains on: asked once, then known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from agrekd_ray.config import Job
from agrekd_ray.core.groups import majority_vote
from agrekd_ray.data import SELECT, TEST, Dataset, open_dataset
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.display import Display
from agrekd_ray.experiment.engine import Engine
from agrekd_ray.experiment.plan import Plan
from agrekd_ray.logits import EvalLogits
from agrekd_ray.models import read_manifest
from agrekd_ray.results import EnsembleCheck, TeacherResult
from agrekd_ray.settings import Precision
from agrekd_ray.teachers import Asked, Pool, measured
from agrekd_ray.training import check_ensemble, score


class Answers:
    """Logits of finished models, recorded; only in memory where the job keeps to one process.

    Args:
        job: the job.
        dataset: of the job.
    """

    def __init__(self, job: Job, dataset: Dataset) -> None:
        self.dataset = dataset
        recorded = job.guidance != "local"
        self._precision: Precision = job.fleet.computes_in if recorded else job.fleet.precision
        self._records = (
            EvalLogits(job.outputs, dataset, job.fleet.computes_in) if recorded else None
        )
        self._told: dict[tuple[Path, str], Tensor] = {}

    def missing(
        self, models: Mapping[Path, str], splits: Sequence[str] = (SELECT, TEST)
    ) -> list[Asked]:
        """Who is still to be asked.

        Args:
            models: names by folder of the checkpoint, all of them made.
            splits: that must be known.
        """
        found = []
        for folder, name in models.items():
            left = tuple(split for split in splits if self._known(folder, split) is None)
            if left:
                found.append(Asked(name, folder, left, self._precision))
        return found

    def complete(self, asked: Sequence[Asked], engine: Engine, display: Display) -> int:
        """Ask models.

        Args:
            asked: what is `missing`.
            engine: does the work.
            display: the progress line.

        Returns:
            Forward passes that it took: splits that were answered.
        """
        if not asked:
            return 0
        display.stage("answers", len(asked), "models")

        def take(one: Asked, told: Mapping[str, Tensor]) -> None:
            for split, logits_NC in told.items():
                if self._records is None:
                    self._told[one.folder, split] = logits_NC
                else:
                    self._records.write(one.folder, split, logits_NC)
            display.advance(one.name)

        engine.ask(asked, take)
        if self._records is not None:
            send_records(self._records.settle, display)
        return sum(len(one.splits) for one in asked)

    def logits(self, folder: Path, split: str) -> Tensor:
        """What a model says to a split, float32 [N, C].

        Raises:
            RunError: nobody knows it any more.
        """
        known = self._known(folder, split)
        if known is None:
            raise RunError(
                f"{folder}: what this model says to {split} was recorded, and is gone or damaged. "
                "`agrekd resume` asks it again."
            )
        return known

    def vote(self, folders: Iterable[Path], split: str) -> tuple[Tensor, Tensor]:
        """Majority vote of several models: probabilities [N, C] and predictions [N]."""
        return majority_vote(self.logits(folder, split) for folder in folders)

    def _known(self, folder: Path, split: str) -> Tensor | None:
        if self._records is None:
            return self._told.get((folder, split))
        return self._records.read(folder, split)


def members(plan: Plan, pool: Pool, answers: Answers) -> tuple[list[TeacherResult], TeacherResult]:
    """The teachers of a plan, and its biased model, with their metrics.

    Args:
        plan: of a job; its teachers are all made.
        pool: that has them.
        answers: of those that are the user's own.
    """
    checkpoints = plan.checkpoints(pool)

    def member(name: str) -> TeacherResult:
        folder = checkpoints[name]
        manifest = read_manifest(folder)
        if name in plan.draw.own:  # what its maker measured was not on these data
            metrics = {
                split: score(answers.dataset, split, answers.logits(folder, split).softmax(1))
                for split in (SELECT, TEST)
            }
        else:
            metrics = measured(folder, manifest)
        return TeacherResult(name, plan.draw.kind(name), manifest.fingerprint, metrics)

    return [member(name) for name in plan.draw.teachers], member(plan.draw.biased)


def checked_ensemble(
    job: Job, plan: Plan, pool: Pool, logits: Callable[[Path, str], Tensor]
) -> EnsembleCheck:
    """Whether AGRE-KD can be trusted with the ensemble of a plan; see `check_ensemble`.

    Args:
        job: of the plan.
        plan: of a job; its teachers are all made.
        pool: that has them.
        logits: what the model of a checkpoint says to a split.
    """
    drawn, folders = plan.draw, plan.checkpoints(pool)
    told = {name: logits(folders[name], SELECT) for name in {*drawn.teachers, drawn.biased}}
    return check_ensemble(
        open_dataset(job.data),
        {name: told[name] for name in drawn.teachers},
        (drawn.biased, told[drawn.biased]),
        {name: drawn.kind(name) for name in told},
        job.distillation.temperature,
    )


def send_records(settle: Callable[[], None], display: Display) -> None:
    """Wait until the object store has what was recorded; where that fails, the run goes on.

    Args:
        settle: waits.
        display: says what failed.
    """
    try:
        settle()
    except RunError as error:
        display.remark(f"{error} The records are here, and the next run with them sends them.")
