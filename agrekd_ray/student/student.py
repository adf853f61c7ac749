"""One student: a spec, its trainer, and what it leaves behind. No Ray here.

The two shells around it are `group.py` (Ray Train) and `experiment/engine.py` (this process).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from agrekd_ray.cluster.events import Event, Notice, OnWay
from agrekd_ray.core.weighting import STRATEGIES
from agrekd_ray.data import SELECT, TEST, Dataset
from agrekd_ray.distillation import Competence, DistillationSpec, Source
from agrekd_ray.errors import RunError
from agrekd_ray.files import DamagedError, checked, exists, in_a_line, read_json, replacing
from agrekd_ray.models import Classifier, Manifest, Model, build, identified, save
from agrekd_ray.plugins import code_of
from agrekd_ray.results import Epoch, Metrics, StudentResult
from agrekd_ray.results.arrays import ARRAYS, EpochFiles, packed, remove, unpacked, write_arrays
from agrekd_ray.settings import (
    AUTO,
    Count,
    Gpus,
    NodeLabels,
    NodeResources,
    Positive,
    Settings,
    Training,
    a_number,
    fingerprint,
)
from agrekd_ray.student.training import StudentTraining
from agrekd_ray.teachers import DfrSettings, retrain_head
from agrekd_ray.training import calibration, score
from agrekd_ray.training.states import StateWriter, make_folder, read_state, unwritable, write_state

BatchNorm = Literal["synchronised", "per_worker"]
OUTCOME, STATES, STATE = "outcome.json", "states", "state.pt"
"""Files, and the folder of states. Earlier versions trained one student at a time, and had one."""


class StudentSettings(Settings):
    """The student and the resources of its training.

    Attributes:
        model: architecture.
        training: how it is trained; the batch size is that of all workers together.
        workers: data-parallel Ray Train workers.
        batch_norm: of several workers: `synchronised` normalises over the whole batch, so that
            they learn what one learns; `per_worker` over each one's part, without waiting.
        timeout_minutes: that several workers wait for one that does not come to a step, or does not
            end its part of an evaluation, before an error names it; longer than `fleet.patience`,
            for it may wait for teachers. Several workers of a teacher wait as long.
        at_once: students that train side by side, each with workers of its own, at most; `auto`
            for as many as the cluster has room for and as make up for the start of their workers.
        cpus: logical CPUs of a worker.
        gpus: share of a GPU that a worker has, 1 where a student has several; `auto` is what the
            cluster has for it, 0 none.
        resources: custom resources of a worker, as Ray names them.
        labels: of the nodes that host workers, in Ray's notation.
    """

    model: Model
    training: Training = Training()
    workers: Count = 1
    batch_norm: BatchNorm = "synchronised"
    timeout_minutes: Positive = 30
    at_once: Count | Literal["auto"] = "auto"
    cpus: Positive = 1
    gpus: Gpus = AUTO
    resources: NodeResources = Field(default_factory=dict)
    labels: NodeLabels = Field(default_factory=dict)

    @property
    def takes(self) -> dict[str, float]:
        """What a worker takes of its node, by name; only where `gpus` is a number."""
        return {"CPU": self.cpus, "GPU": a_number(self.gpus), **self.resources}


@dataclass(frozen=True)
class StudentSpec:
    """What one student has to do.

    Attributes:
        method: its name in the job.
        seed: of weights, order and dropout.
        model: architecture.
        training: how it is trained.
        spec: how its teachers teach; None for the labels alone.
        teachers: who teaches, in words.
        dfr: where the student is to be followed by a copy with its last layer retrained.
        folder: where it is put below the folder of the students; empty for the folder itself.
        batch_norm: how several workers normalise, see `StudentSettings`.
    """

    method: str
    seed: int
    model: Model
    training: Training
    spec: DistillationSpec | None = None
    teachers: str = "-"
    dfr: DfrSettings | None = None
    folder: str = ""
    batch_norm: BatchNorm = "synchronised"

    @property
    def name(self) -> str:
        """`METHOD-seed-SEED`, as `StudentResult.name`, below its folder."""
        return str(PurePath(self.folder, f"{self.method}-seed-{self.seed}"))

    @property
    def results(self) -> tuple[str, ...]:
        """Names of all that it leaves behind; its own is written last."""
        debiased = PurePath(self.folder, f"{self.method}_dfr-seed-{self.seed}")
        return (str(debiased), self.name) if self.dfr is not None else (self.name,)

    def informed(self, competence: Callable[[tuple[str, ...], str], Competence]) -> StudentSpec:
        """The same, with its teachers' competence; see `DistillationSpec.informed`."""
        if self.spec is None:
            return self
        return replace(self, spec=self.spec.informed(competence))


class Student(StudentTraining):
    """The training of a `StudentSpec`; can be put down and taken up after any step.

    Args:
        spec: what to do.
        dataset: see `StudentTraining`.
        source: where its teachers' answers come from; None for the labels alone.
        further: see `StudentTraining`.
    """

    def __init__(
        self, spec: StudentSpec, dataset: Dataset, source: Source | None, **further: Any
    ) -> None:
        self.spec = spec
        self._epochs, self._writer = EpochFiles(), StateWriter()
        if spec.spec is not None and source is None:
            raise ValueError(f"{spec.name} needs teachers, but there is no source")
        shape, classes = dataset.shape, len(dataset.classes)
        self.model: Classifier = build(spec.model, shape, classes, spec.seed)
        super().__init__(
            self.model,
            dataset,
            spec.training,
            spec.spec,
            source,
            seed=spec.seed,
            **further,
        )

    def save_state(self, path: Path) -> None:
        """Write everything that the rest of the training depends on; whole or not at all.

        Within an epoch it is written while the training goes on.

        Raises:
            RunError: the disk is full or cannot be written, now or the last time.
        """
        self._writer.wait()
        try:
            history = self._epochs.write(self.history, path)
        except OSError as error:
            raise unwritable(path.parent, "the state of the training", error) from None
        trainer = self.trainer.state_dict()
        state = {
            "student": self.spec.name,
            "trainer": trainer,
            "history": history,
            "replayed": self.replayed,
        }
        write = self._writer.begin if self.trainer.steps_done else write_state
        write(path, state)

    def moved(self, folder: Path) -> None:
        """The folder of the last state has another path now."""
        self._epochs.moved(folder)

    def load_state(self, path: Path, *, of_any: bool = False) -> bool:
        """Go on from a state written by `save_state`; False where it is another student's.

        Args:
            path: the state.
            of_any: take another student's too, as population based training does.

        Raises:
            RunError: it is damaged, or of another model.
        """
        try:
            state = read_state(path, self._device)
        except (FileNotFoundError, DamagedError) as error:
            raise _damaged(path, error) from None
        try:
            if state["student"] != self.spec.name and not of_any:
                return False
            epochs = EpochFiles()
            history = epochs.read(state["history"], path)
            replayed = int(state.get("replayed", 0))  # an earlier version counted no steps
            self.trainer.load_state_dict(state["trainer"])
        except Exception as error:  # torch's parts answer a foreign state with anything
            raise _damaged(path, error) from None
        self.history, self._epochs, self.replayed = history, epochs, replayed
        return True

    def take_up(self, training: Path) -> Path:
        """Go on from the state that is in a folder, if there is one.

        Args:
            training: folder of the states; in one of an earlier version a single student has one.

        Returns:
            The file that this student's states are to be written to.

        Raises:
            RunError: the state is damaged, or the folder cannot be made.
        """
        own = training / STATES / f"{self.spec.name}.pt"
        for state in (own, training / STATE):
            if exists(state) and self.load_state(state):
                break
        make_folder(own.parent)
        return own

    def train(
        self,
        training: Path,
        students: Path,
        heard: Callable[[Epoch], None],
        tell: Callable[[Event], None] = lambda event: None,
    ) -> list[StudentResult]:
        """Go on from the state that is there to the end, with a state after every epoch at least.

        Args:
            training: folder of the states.
            students: folder of finished students.
            heard: gets the record of every epoch, on the first worker.
            tell: hears where it goes on, and where it is in a long epoch, on the first worker.

        Returns:
            What the student comes to, see `finish`; nothing on all workers but the first.
        """
        state = self.take_up(training)
        if self._first and (self.history or self.trainer.steps_done) and not self.done:
            tell(Notice(f"{self.spec.name} goes on from {self.trainer.place}"))

        def keep() -> None:
            self.save_state(state)
            tell(OnWay(self.spec.name, self.trainer.place))

        while not self.done:
            record = self.epoch(keep)
            if record is not None:
                self.save_state(state)
                heard(record)
        results = self.finish(students)
        if self._first:
            remove(state)
        return results

    def test(self) -> Metrics:
        """How good it is on the test split; of several workers, all call it and all are told.

        It is for reports, never for a choice.
        """
        return score(self._dataset, TEST, self.probabilities(TEST))

    def finish(self, students: Path) -> list[StudentResult]:
        """Evaluate and save the student, and its copy with a retrained last layer where asked.

        All workers evaluate the student; the first does the rest, and alone returns anything.
        """
        answers = {split: self.probabilities(split) for split in (SELECT, TEST)}
        if not self._first:
            return []
        given = self.spec
        outcomes = []
        if given.dfr is not None:
            debiased = retrain_head(
                self.model,
                self._dataset,
                given.dfr,
                given.seed,
                self._device,
                given.training.precision,
            )
            theirs = {split: self._logits(debiased, split).softmax(1) for split in answers}
            outcomes.append(self._leave(students, debiased, f"{given.method}_dfr", [], theirs))
        outcomes.append(self._leave(students, self.model, given.method, self.history, answers))
        return outcomes

    def _leave(
        self,
        students: Path,
        model: Classifier,
        method: str,
        history: list[Epoch],
        answers: dict[str, Tensor],
    ) -> StudentResult:
        given, data = self.spec, self._dataset
        splits = {split: score(data, split, answer_NC) for split, answer_NC in answers.items()}
        folder = students / given.folder / f"{method}-seed-{given.seed}"
        outcome = StudentResult(
            method,
            given.seed,
            given.teachers,
            splits,
            history,
            str(Path(folder.parent.name, folder.name)),
            calibration(data, TEST, answers[TEST]),
        )
        made_by: dict[str, Any] = {
            "method": method,
            "seed": given.seed,
            "training": given.training,
            "lesson": given.spec.described() if given.spec else None,
        }
        if given.spec and (code := code_of(STRATEGIES.maker(given.spec.strategy))):
            made_by["code"] = code
        save(
            folder,
            model,
            Manifest(
                model=given.model,
                shape=data.shape,
                classes=data.classes,
                fingerprint=fingerprint(data.fingerprint, made_by, identified(given.model)),
                data=data.fingerprint,
                metrics={split: asdict(metrics) for split, metrics in splits.items()},
                made_by={
                    **made_by,
                    "training": given.training.model_dump(mode="json"),
                    "numbers": self.trainer.numbers,
                },
            ),
        )
        write_outcome(folder, outcome)
        return outcome


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"{path}: damaged training state ({in_a_line(error)}); delete it to train this student "
        "from its start."
    )


def write_outcome(folder: Path, outcome: StudentResult) -> None:
    """Write a finished method × seed; whole or not at all.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    values, arrays = packed(outcome)
    try:
        write_arrays(folder / ARRAYS, arrays)
        with replacing(folder / OUTCOME) as draft:
            draft.write_text(json.dumps(values), encoding="utf-8")
    except OSError as error:
        raise unwritable(folder, "the outcome", error) from None


def read_outcome(folder: Path) -> StudentResult | None:
    """What `write_outcome` wrote; None where it is not there.

    Raises:
        RunError: it is damaged, or cannot be read.
    """
    path = folder / OUTCOME
    try:
        values = unpacked(read_json(path, dict[str, Any]), folder)
        found = checked(StudentResult, values)
        if found.name != folder.name:
            raise DamagedError(f"it is of {found.name}")
        return found
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise RunError(f"{path}: damaged ({error}); delete the folder to make it again.") from None
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror or error}); make it readable, or delete the "
            "folder to make it again."
        ) from None
