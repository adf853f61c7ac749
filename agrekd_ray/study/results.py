"""What a study came to: every outcome of every point, and what follows from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from agrekd_ray.config.sweep import Published, in_words, key_names
from agrekd_ray.files import DamagedError, checked
from agrekd_ray.results import Cost, Effort, Metrics, Outcome, part_measured
from agrekd_ray.tracking.intervals import PairedDifference, paired_difference
from agrekd_ray.tracking.labels import is_distilled, label

OURS, WGA, ACCURACY = "agre_kd", "worst_group_accuracy", "accuracy"
METRICS = (WGA, ACCURACY)


@dataclass(frozen=True)
class PointResult:
    """One point of a study.

    Attributes:
        label: in words.
        at: value of every swept key.
        draw: of data and teachers; None where the study has none.
        outcomes: finished methods × seeds.
    """

    label: str
    at: dict[str, Any]
    draw: int | None
    outcomes: list[Outcome]


@dataclass(frozen=True)
class Figure:
    """One method at one place of the sweep, on the test split, over draws and seeds.

    Attributes:
        at: value of every swept key.
        method: name of the method.
        mean: by metric, as a share.
        std: sample standard deviation over all draws and seeds; 0 for a single one.
        count: draws × seeds.
        published: by metric, in percent; where there is none, it is missing.
        measured_over: `2 of 4 groups`, where the others have no sample; else empty.
    """

    at: dict[str, Any]
    method: str
    mean: dict[str, float]
    std: dict[str, float]
    count: int
    published: dict[str, float] = field(default_factory=dict)
    measured_over: str = ""


@dataclass(frozen=True)
class Gain:
    """Worst-group accuracy of AGRE-KD minus another method's, at one place of the sweep.

    Attributes:
        at: value of every swept key.
        against: name of the other method.
        difference: paired by draw (the mean of its seeds), or by seed in a study without draws.
        by_draw: the mean differences that were paired, as shares.
    """

    at: dict[str, Any]
    against: str
    difference: PairedDifference
    by_draw: list[float]


@dataclass(frozen=True)
class Panel:
    """Places that one table or picture shows.

    Attributes:
        where: values of the keys that are the same in it, in words; empty where there are none.
        rest: these values by key.
        places: its places, in the order of the last swept key.
        columns: their values of that key, in words; empty without a sweep.
        methods: that have a figure there.
    """

    where: str
    rest: Mapping[str, Any]
    places: list[dict[str, Any]]
    columns: list[str]
    methods: list[str]


@dataclass(frozen=True)
class StudyResult:
    """Everything that reports know about a study.

    Attributes:
        name: of the job.
        folder: of the study.
        sweep: values by key.
        methods: in the order of the job.
        published: results of others.
        points: all that are finished.
        seconds: that it took.
        effort: what the teachers cost, where there were any.
        attempts: in which it was run.
        settings: the resolved job.
        versions: of packages, by name.
        splits: of the data, in words.
        planned: points in all; more than are finished while the study is under way, or was stopped.
    """

    name: str
    folder: str
    sweep: dict[str, list[Any]]
    methods: list[str]
    published: Published | None
    points: list[PointResult]
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    splits: str = ""
    planned: int = 0
    effort: Effort | None = None
    attempts: int = 1

    @property
    def cost(self) -> Cost:
        """What it took."""
        return Cost(self.seconds, self.effort, self.attempts)

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all points."""
        return [outcome for point in self.points for outcome in point.outcomes]

    @property
    def unfinished(self) -> str:
        """In words, how much of the study is there; empty where all is."""
        there = len(self.points)
        return f"unfinished: {there} of {self.planned} points" if there < self.planned else ""

    @property
    def draws(self) -> list[int]:
        """Of data and teachers; empty for a study without."""
        return sorted({point.draw for point in self.points if point.draw is not None})

    @property
    def worst(self) -> str:
        """What the worst-group accuracy is of, in words; see `Metrics.worst`.

        Where that differs from place to place, `part` says it of each figure.
        """
        tested = [o.splits["test"] for p in self.points for o in p.outcomes if "test" in o.splits]
        words = {metrics.worst for metrics in tested}
        if len(words) == 1:
            return words.pop()
        return "worst class" if tested and not tested[0].groups_known else "worst group"

    def part(self, figure: Figure, metric: str) -> str:
        """What a figure is measured over, where that is not all, and not so everywhere."""
        everywhere = len({other.measured_over for other in self.figures}) == 1
        return "" if everywhere or metric != WGA else figure.measured_over

    @cached_property
    def places(self) -> list[dict[str, Any]]:
        """Places of the sweep, in its order; each stands for all of its draws."""
        found: list[dict[str, Any]] = []
        for point in self.points:
            if point.at not in found:
                found.append(point.at)
        return found

    @cached_property
    def figures(self) -> list[Figure]:
        """Method by method at every place; methods that give no outcome there are left out."""
        return [
            figure
            for at in self.places
            for method in self.methods
            if (figure := self._figure(at, method)) is not None
        ]

    @cached_property
    def gains(self) -> list[Gain]:
        """What AGRE-KD gains over every other distillation, at every place."""
        others = [m for m in self.methods if is_distilled(m) and m != OURS]
        return [
            gain
            for at in self.places
            for method in others
            if (gain := self._gain(at, method)) is not None
        ]

    @cached_property
    def panels(self) -> list[Panel]:
        """The places, apart by all swept keys but the last."""
        names = key_names(self.sweep)
        *others, last = list(self.sweep) or [""]
        found: list[Panel] = []
        for at in self.places:
            rest = {key: at[key] for key in others}
            if not any(panel.rest == rest for panel in found):
                places = [p for p in self.places if all(p[key] == rest[key] for key in rest)]
                columns = [f"{names[last]} {in_words(p[last])}" if last else "" for p in places]
                methods = [m for m in self.methods if any(self.figure(p, m) for p in places)]
                where = ", ".join(
                    f"{names[key]} = {in_words(value)}" for key, value in rest.items()
                )
                found.append(Panel(where, rest, places, columns, methods))
        return found

    def figure(self, at: Mapping[str, Any], method: str) -> Figure | None:
        """The figure of a method at a place."""
        return next((f for f in self.figures if f.at == at and f.method == method), None)

    def gain(self, at: Mapping[str, Any], against: str) -> Gain | None:
        """The gain over a method at a place."""
        return next((g for g in self.gains if g.at == at and g.against == against), None)

    def place_name(self, at: Mapping[str, Any]) -> str:
        """A place in words: `debiased=2 temperature=4`."""
        names = key_names(self.sweep)
        return " ".join(f"{names[key]}={in_words(value)}" for key, value in at.items()) or "job"

    def metrics(self) -> dict[str, float]:
        """The summary as MLflow names it: `<place>/<method>/test/worst_group_accuracy/mean`."""
        values = {}
        for figure in self.figures:
            begin = f"{self.place_name(figure.at)}/{figure.method}/test/{WGA}"
            values[f"{begin}/mean"] = figure.mean[WGA]
            values[f"{begin}/std"] = figure.std[WGA]
        for gain in self.gains:
            key = f"{self.place_name(gain.at)}/{OURS}_minus_{gain.against}/test/{WGA}"
            values[key] = gain.difference.mean
        return values

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; shares, and percent where figures are published ones."""
        return {
            "study": self.name,
            "folder": self.folder,
            "sweep": self.sweep,
            "draws": self.draws,
            "methods": self.methods,
            "published": self.published.model_dump(mode="json") if self.published else None,
            "figures": [asdict(figure) for figure in self.figures],
            "gains": [asdict(gain) for gain in self.gains],
            "points": [
                {
                    "label": point.label,
                    "at": point.at,
                    "draw": point.draw,
                    "outcomes": [
                        {key: value for key, value in o.to_json().items() if key != "history"}
                        for o in point.outcomes
                    ],
                }
                for point in self.points
            ],
            "splits": self.splits,
            "planned": self.planned,
            **asdict(self.cost),
            "settings": self.settings,
            "versions": self.versions,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudyResult:
        """Back from `to_json`; outcomes come without their histories.

        Raises:
            DamagedError, KeyError, TypeError: the values are damaged.
        """
        result = checked(cls, {**values, "name": values["study"]})
        for point in result.points:
            if point.at.keys() != result.sweep.keys():
                raise DamagedError(f"{point.label}: not at the keys of the sweep")
        return result

    def _tested(self, at: Mapping[str, Any], method: str) -> list[Metrics]:
        """Metrics on the test split of every draw and seed."""
        return [
            outcome.splits["test"]
            for point in self.points
            if point.at == at
            for outcome in point.outcomes
            if outcome.method == method and "test" in outcome.splits
        ]

    def _values(self, at: Mapping[str, Any], method: str, metric: str) -> dict[Any, list[float]]:
        """Test figures by draw."""
        values: dict[Any, list[float]] = {}
        for point in self.points:
            if point.at == at:
                values[point.draw] = [
                    getattr(outcome.splits["test"], metric)
                    for outcome in point.outcomes
                    if outcome.method == method and "test" in outcome.splits
                ]
        return {draw: found for draw, found in values.items() if found}

    def _figure(self, at: dict[str, Any], method: str) -> Figure | None:
        found = {
            metric: [v for values in self._values(at, method, metric).values() for v in values]
            for metric in METRICS
        }
        if not found[WGA]:
            return None
        published = {
            metric: value
            for metric in METRICS
            if self.published and (value := self.published.at(at, method, metric)) is not None
        }
        return Figure(
            at,
            method,
            {metric: mean(values) for metric, values in found.items()},
            {metric: stdev(values) if len(values) > 1 else 0.0 for metric, values in found.items()},
            len(found[WGA]),
            published,
            max((part_measured(m.coverage, WGA) for m in self._tested(at, method)), key=len),
        )

    def _gain(self, at: dict[str, Any], against: str) -> Gain | None:
        sides = [self._paired_by(at, method) for method in (OURS, against)]
        difference = paired_difference(*sides)
        if difference is None:
            return None
        ours, theirs = sides
        return Gain(
            at, against, difference, [ours[key] - theirs[key] for key in ours if key in theirs]
        )

    def _paired_by(self, at: Mapping[str, Any], method: str) -> dict[Any, float]:
        """Worst-group accuracy by draw, or by seed where there is one draw only."""
        if len(self.draws) > 1:
            return {draw: mean(v) for draw, v in self._values(at, method, WGA).items()}
        return {
            outcome.seed: outcome.splits["test"].worst_group_accuracy
            for point in self.points
            if point.at == at
            for outcome in point.outcomes
            if outcome.method == method and "test" in outcome.splits
        }


def heading(result: StudyResult, what: str = "Accuracy") -> str:
    """What the figures are, in words.

    Args:
        result: of the study.
        what: metric.
    """
    counts = {figure.count for figure in result.figures}
    runs = max(counts, default=0)
    draws = f"{len(result.draws)} draws of data and teachers" if len(result.draws) > 1 else ""
    seeds = runs // max(1, len(result.draws))
    over = " × ".join(part for part in (draws, f"{seeds} seeds" if seeds > 1 else "") if part)
    spread = f", mean ± sd over {over}" if over else ""
    return f"{what} on the test split in %{spread}"


def gain_in_words(result: StudyResult, gain: Gain) -> str:
    """`AGRE-KD against AVER: +8.0 points (95 % +5.1 … +10.2, 4 draws)`."""
    d = gain.difference
    unit = "draws" if len(result.draws) > 1 else "seeds"
    sure = ""
    if d.low is not None and d.high is not None:
        sure = f" (95 % {100 * d.low:+.1f} … {100 * d.high:+.1f}, {d.seeds} {unit})"
    return f"{label(OURS)} against {label(gain.against)}: {100 * d.mean:+.1f} points{sure}"
