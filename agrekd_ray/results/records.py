"""What a run leaves behind: plain records that tables, plots and tracking read.

Records are dataclasses that turn into JSON and back without loss, so that a run that was
stopped can be completed by another process from the files alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import mean
from typing import Annotated, Any

from pydantic import BeforeValidator

from agrekd_ray.files import checked
from agrekd_ray.results.metrics import ALL, WORST_GROUP, Coverage, over, part_measured

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that may be NaN, which JSON does not have and keeps as null."""


@dataclass(frozen=True)
class Metrics:
    """How well one model does on one split. All shares are in [0, 1].

    Attributes:
        accuracy: plain mean over the samples.
        worst_group_accuracy: smallest accuracy of any evaluation group (WGA).
        weighted_accuracy: accuracies by group, weighted by the groups' shares of the
            training split (the "adjusted" mean of the Waterbirds literature).
        balanced_accuracy: mean of the accuracies by class.
        worst_class_accuracy: smallest accuracy of any class.
        ece: expected calibration error, 15 equal-width bins of confidence.
        groups: accuracy by evaluation group, by name; groups without a sample are left out.
        counts: samples by evaluation group, by name.
        groups_known: false where the data have no group labels, and the groups are the classes.
        overlapping: accuracy by name of further groups, of which a sample may be in several.
        worst_overlapping_group_accuracy: smallest of these; None where there are none.
        coverage: of the `groups` (where the data have any), the `classes` and the `overlapping
            groups`, how many have a sample, and how many there are; empty where an earlier version
            measured. Those without a sample are left out of every smallest and mean accuracy.
        by_group: further measures (`core.groups.MEASURES`) by name and evaluation group.
    """

    accuracy: Number
    worst_group_accuracy: Number
    weighted_accuracy: Number
    balanced_accuracy: Number
    worst_class_accuracy: Number
    ece: Number
    groups: dict[str, Number]
    counts: dict[str, int]
    groups_known: bool = True
    overlapping: dict[str, Number] = field(default_factory=dict)
    worst_overlapping_group_accuracy: float | None = None
    coverage: Coverage = field(default_factory=dict)
    by_group: dict[str, dict[str, Number]] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """The metrics that are one number each and are there, by name."""
        return {
            name: value
            for name, value in asdict(self).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    @property
    def worst(self) -> str:
        """What `worst_group_accuracy` is of, in words: `worst group`, `worst of 2 of 4 groups`."""
        words = "worst group" if self.groups_known else "worst class"
        return over(words, part_measured(self.coverage, WORST_GROUP))


@dataclass(frozen=True)
class Epoch:
    """One finished epoch of one student.

    Attributes:
        epoch: number of the epoch, from 0.
        loss: mean objective over the epoch's samples (method, equation 5).
        learning_rate: at the epoch's last step.
        seconds: wall time of the epoch's steps.
        val: metrics on the selection half of the validation split.
        weights: mean weight of each teacher by group of the *training* samples,
            `weights[group][teacher]`; empty for students without teachers.
        fallback_share: share of samples whose weights were all zero (the 0/0 case), in [0, 1].
        fallback_by_group: the same by group of the training samples.
        influence: share of each teacher in the length of the epoch's teaching gradients, by name;
            they sum to 1, and one is negative where the others overrule the teacher.
        influence_by_group: the same by group of the training samples.
        selection: score by selection rule, for students of a search.
        steps: of training, of all students that the record is the mean of.
        guidance_seconds: of `seconds`, what it took to be told the gradients: waiting for the
            teachers, or reading and weighing their records.
        replayed_steps: steps whose gradients came out of records.
        lost_steps: by teacher that was lost, steps in which the others taught without it
            (`fleet.on_teacher_loss: drop`).
    """

    epoch: int
    loss: Number
    learning_rate: Number
    seconds: Number
    val: Metrics
    weights: dict[str, dict[str, Number]] = field(default_factory=dict)
    fallback_share: Number = 0.0
    selection: dict[str, Number] = field(default_factory=dict)
    steps: int = 0
    fallback_by_group: dict[str, Number] = field(default_factory=dict)
    influence: dict[str, Number] = field(default_factory=dict)
    influence_by_group: dict[str, dict[str, Number]] = field(default_factory=dict)
    guidance_seconds: Number = 0.0
    replayed_steps: int = 0
    lost_steps: dict[str, int] = field(default_factory=dict)


def epochs_from_json(values: list[dict[str, Any]]) -> list[Epoch]:
    """Epochs out of plain JSON values.

    Raises:
        DamagedError: they are other ones.
    """
    return checked(list[Epoch], values)


def mean_metrics(several: Sequence[Metrics]) -> Metrics:
    """Means of all figures, over students that were measured on the same samples."""
    names = (*several[0].scalars(), "groups", "overlapping", "by_group")
    return replace(several[0], **_means_of(several, names))


def mean_epoch(several: Sequence[Epoch]) -> Epoch:
    """Means of the same epoch of several students with the same teachers; their seconds add up."""
    means = ("loss", "weights", "fallback_share", "selection", "fallback_by_group", "influence")
    added_up = ("seconds", "steps", "guidance_seconds", "replayed_steps")
    lost = dict.fromkeys(name for epoch in several for name in epoch.lost_steps)
    return replace(
        several[0],
        val=mean_metrics([epoch.val for epoch in several]),
        lost_steps={name: sum(e.lost_steps.get(name, 0) for e in several) for name in lost},
        **{name: sum(getattr(epoch, name) for epoch in several) for name in added_up},
        **_means_of(several, (*means, "influence_by_group")),
    )


def _means_of(several: Sequence[Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: _mean([getattr(one, name) for one in several]) for name in names}


def _mean(several: Sequence[Any]) -> Any:
    """Means of numbers, or by name over those that have it: an earlier version may not."""
    if not isinstance(several[0], dict):
        return mean(several)
    names = dict.fromkeys(name for values in several for name in values)
    return {name: _mean([values[name] for values in several if name in values]) for name in names}


def degraded(history: Sequence[Epoch]) -> str:
    """In words, which teachers were lost in the course of a training, and when."""
    lost: dict[str, list[Epoch]] = {}
    for epoch in history:
        for name in epoch.lost_steps:
            lost.setdefault(name, []).append(epoch)
    steps = sum(epoch.steps for epoch in history)
    return "; ".join(
        f"without {name} for {sum(epoch.lost_steps[name] for epoch in epochs)} of {steps} steps, "
        f"from epoch {epochs[0].epoch + 1}"
        for name, epochs in lost.items()
    )


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram.

    Attributes:
        low: smallest confidence of the bin, exclusive (0 is in the first).
        high: largest confidence, inclusive.
        count: samples that were answered so confidently.
        confidence: their mean confidence.
        accuracy: share of them that was answered right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Agreement:
    """How an ensemble's vote stands to the biased model's answers; shares of samples, of sum 1.

    Attributes:
        count: samples.
        agrees_right: both are right.
        agrees_wrong: both name the same wrong class.
        contradicts_right: the biased model is wrong, the vote right.
        contradicts_wrong: they differ, and the vote is wrong.
    """

    count: int
    agrees_right: float
    agrees_wrong: float
    contradicts_right: float
    contradicts_wrong: float


@dataclass(frozen=True)
class SplitAgreement:
    """Agreement of the ensemble with the biased model on one split.

    Attributes:
        overall: on all samples.
        groups: by evaluation group, by name; groups without a sample are left out.
        overlapping: by name of further groups, of which a sample may be in several.
    """

    overall: Agreement
    groups: dict[str, Agreement] = field(default_factory=dict)
    overlapping: dict[str, Agreement] = field(default_factory=dict)

    @property
    def by_group(self) -> dict[str, Agreement]:
        """On all samples, then by every kind of group."""
        return {ALL: self.overall, **self.groups, **self.overlapping}


@dataclass(frozen=True)
class TeacherCheck:
    """What a teacher, or the biased model, answers to the selection half of validation.

    Attributes:
        name: as of `TeacherResult`.
        kind: as of `TeacherResult`.
        accuracy: share of samples that it gets right.
        balanced_accuracy: mean of the classes.
        classes: accuracy by class, by name; classes without a sample are left out.
        groups: accuracy by evaluation group, where they are known, by name.
        with_biased: share of samples on which it names the biased model's class; None, as what
            follows, for the biased model.
        with_others: mean share on which it names the same class as another teacher; None for one.
        weight: share that AGRE-KD would give it for a student that has learnt nothing yet.
        warned: whether a warning is about it.
    """

    name: str
    kind: str
    accuracy: Number
    balanced_accuracy: Number
    classes: dict[str, Number]
    groups: dict[str, Number] = field(default_factory=dict)
    with_biased: float | None = None
    with_others: float | None = None
    weight: float | None = None
    warned: bool = False

    @property
    def worst_group_accuracy(self) -> float | None:
        """Smallest accuracy of any group; None where none are known."""
        return min(self.groups.values(), default=None)

    @property
    def worst_class(self) -> str:
        """The class with the smallest accuracy."""
        return min(self.classes, key=lambda name: self.classes[name])


@dataclass(frozen=True)
class EnsembleCheck:
    """Whether AGRE-KD can be trusted with an ensemble, by its answers to validation.

    Attributes:
        count: samples, of the selection half.
        most_frequent: share of the most frequent class: the accuracy of a constant answer.
        teachers: them.
        biased: the biased model.
        sided: share of samples on which all teachers name the biased model's class.
        mistakes: samples that the biased model gets wrong.
        sided_wrong: share of these that all teachers get wrong alike; NaN without any.
        differ: share of samples on which the teachers' majority vote differs from the biased
            model, cases counted alike (see `core.ensemble.Contradiction`); None, as what follows,
            where there are too few to tell.
        vote_right: share of these that the vote gets right; None where they never differ.
        biased_right: share of these that the biased model gets right.
        warnings: in words, each with its figures and what to do.
    """

    count: int
    most_frequent: float
    teachers: list[TeacherCheck]
    biased: TeacherCheck
    sided: float
    mistakes: int
    sided_wrong: Number
    differ: float | None = None
    vote_right: float | None = None
    biased_right: float | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Diagnostics:
    """What a job found out about its ensemble.

    Attributes:
        agreement: with the biased model, by split, `val` (selection half) and `test`; empty for a
            job without teachers.
        ensemble: what was found before the first student; None for a job without teachers, and
            where an earlier version ran it.
    """

    agreement: dict[str, SplitAgreement] = field(default_factory=dict)
    ensemble: EnsembleCheck | None = None


@dataclass(frozen=True)
class StudentResult:
    """One method with one seed, finished.

    Attributes:
        method: name of the method as in the job (`agre_kd`, `one_hot_dfr`, ...).
        seed: the student's seed.
        teachers: who taught, in words (`5 (2 debiased)`, `-` where nobody did).
        splits: metrics by split, `val` (selection half) and `test`.
        history: one entry an epoch; empty where nothing was trained by epochs.
        checkpoint: folder of the student's checkpoint, relative to the run's folder, or None.
        calibration: reliability diagram of the test split; bins without a sample are left out.
    """

    method: str
    seed: int
    teachers: str
    splits: dict[str, Metrics]
    history: list[Epoch] = field(default_factory=list)
    checkpoint: str | None = None
    calibration: list[Bin] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`METHOD-seed-SEED`, unique within a job."""
        return f"{self.method}-seed-{self.seed}"

    @property
    def degraded(self) -> str:
        """In words, which teachers were lost and when; empty where none was."""
        return degraded(self.history)


@dataclass(frozen=True)
class Span:
    """Something that was done again and again, and the seconds that it took in all."""

    count: int = 0
    seconds: float = 0.0

    def __add__(self, other: Span) -> Span:
        return Span(self.count + other.count, self.seconds + other.seconds)

    @property
    def milliseconds(self) -> float:
        """Each time, in the mean."""
        return 1000 * self.seconds / max(self.count, 1)

    @property
    def in_words(self) -> str:
        """`1,350 × 4.1 ms = 5.5 s`."""
        return f"{self.count:,} × {self.milliseconds:.3g} ms = {self.seconds:,.1f} s"


def added(one: Mapping[str, Span], other: Mapping[str, Span]) -> dict[str, Span]:
    """Spans by name, those of the same name together."""
    return dict(one) | {name: one.get(name, Span()) + span for name, span in other.items()}


@dataclass(frozen=True)
class TeacherCost:
    """What the teachers of one process's part of a run cost.

    Attributes:
        actors: that were started for them.
        forwards: forward passes of a backbone.
        recorded: bytes of their records.
        seconds: that the forward passes took.
        retries: requests that were sent again, since an actor had died.
        spans: where the time went: `forward NAMES` by teachers that share a backbone, `gather`
            and `weigh` of the weighting actor.
    """

    actors: int = 0
    forwards: int = 0
    recorded: int = 0
    seconds: float = 0.0
    retries: int = 0
    spans: dict[str, Span] = field(default_factory=dict)

    def __add__(self, other: TeacherCost) -> TeacherCost:
        return TeacherCost(
            self.actors + other.actors,
            self.forwards + other.forwards,
            max(self.recorded, other.recorded),
            self.seconds + other.seconds,
            self.retries + other.retries,
            added(self.spans, other.spans),
        )

    @property
    def in_words(self) -> str:
        """For the end of a run."""
        if not self.forwards:
            return "no forward pass: all that they say had been recorded before"
        kept = f", {self.recorded / 1e6:.1f} MB recorded" if self.recorded else ""
        several = "processes" if self.actors > 1 else "process"
        return f"{self.forwards:,} forward passes in {max(1, self.actors)} {several}{kept}"


ATTEMPTS = "attempts.json"
"""File of a run with its `Attempt`s."""


@dataclass(frozen=True)
class Attempt:
    """What one process did for a run, from its start to its end or its last sign of life.

    Attributes:
        seconds: that it took.
        effort: what the teachers cost; None where nobody was taught.
    """

    seconds: float = 0.0
    effort: TeacherCost | None = None


@dataclass(frozen=True)
class Cost:
    """What a run took, over all attempts at it.

    Attributes:
        seconds: that they took together; NaN where it is not known.
        effort: what the teachers cost; None where nobody was taught.
        attempts: processes that worked on it; more than one where it was stopped and resumed.
    """

    seconds: Number = math.nan
    effort: TeacherCost | None = None
    attempts: int = 1

    @property
    def in_words(self) -> str:
        """`3 min 7 s`, `3 min 7 s, in 2 attempts`; empty where nobody knows."""
        if not math.isfinite(self.seconds):
            return ""
        minutes, rest = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
        words = " ".join(f"{value} {unit}" for value, unit in parts if value)
        return f"{words or 'less than a second'}{self.several}"

    @property
    def several(self) -> str:
        """`, in 2 attempts`; empty for one."""
        return f", in {self.attempts} attempts" if self.attempts > 1 else ""


@dataclass(frozen=True)
class TeacherResult:
    """A model of the ensemble (or the biased model), as reports name it.

    Attributes:
        name: `erm-3`, `dfr-3`, ... unique within a job.
        kind: `erm`, a kind of debiasing (`dfr`, ...) or `own` (a checkpoint handed in).
        fingerprint: of everything that made it.
        metrics: by split.
    """

    name: str
    kind: str
    fingerprint: str
    metrics: dict[str, Metrics] = field(default_factory=dict)
