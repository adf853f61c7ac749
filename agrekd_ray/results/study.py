"""What a study came to: every outcome of every point, and what follows from all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from agrekd_ray.files import DamagedError, checked
from agrekd_ray.results.frame import Row, by_pair, figures, frame, worst_words
from agrekd_ray.results.intervals import (
    ONE_DRAW,
    PairedDifference,
    differences_by_seed,
    paired_difference,
    seeds_of_one_draw,
)
from agrekd_ray.results.metrics import ACCURACY, WORST_GROUP, is_distilled, short_paths
from agrekd_ray.results.points import Published, in_words
from agrekd_ray.results.records import Cost, Number, StudentResult, TeacherCost

OURS = "agre_kd"
METRICS = (WORST_GROUP, ACCURACY)


@dataclass(frozen=True)
class PointResult:
    """One point of a study.

    Attributes:
        label: in words.
        at: value of every swept key.
        draw: of data and teachers; None where the study has none.
        outcomes: finished methods × seeds.
        warnings: of its ensemble.
    """

    label: str
    at: dict[str, Any]
    draw: int | None
    outcomes: list[StudentResult]
    warnings: list[str] = field(default_factory=list)


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
        places: its places, in the order of the last swept key.
        columns: their values of that key, in words; empty without a sweep.
        methods: that have a figure there.
    """

    where: str
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
    seconds: Number = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    splits: str = ""
    planned: int = 0
    effort: TeacherCost | None = None
    attempts: int = 1

    @property
    def cost(self) -> Cost:
        """What it took."""
        return Cost(self.seconds, self.effort, self.attempts)

    @property
    def outcomes(self) -> list[StudentResult]:
        """Of all points."""
        return [outcome for point in self.points for outcome in point.outcomes]

    @property
    def unfinished(self) -> str:
        """In words, how much of the study is there; empty where all is."""
        finished = len(self.points)
        return f"unfinished: {finished} of {self.planned} points" if finished < self.planned else ""

    @property
    def warnings(self) -> list[str]:
        """Of the ensembles, each with the label of the point that had it first."""
        first: dict[str, str] = {}
        for point in self.points:
            for warning in point.warnings:
                first.setdefault(warning, point.label)
        return [f"{label}: {warning}" for warning, label in first.items()]

    @property
    def draws(self) -> list[int]:
        """Of data and teachers; empty for a study without."""
        return sorted({point.draw for point in self.points if point.draw is not None})

    @property
    def unit(self) -> str:
        """What differences are paired by: `draw`, or `seed` where there is one draw only."""
        return "draw" if len(self.draws) > 1 else "seed"

    @cached_property
    def tested(self) -> pd.DataFrame:
        """The tidy table of the test split; `point` is the place, without the draw."""
        tables = [frame(p.outcomes, self.place_name(p.at), p.draw) for p in self.points]
        every = pd.concat([table for table in tables if len(table)] or [frame([])])
        return every[every["split"] == "test"]

    @cached_property
    def rows(self) -> dict[tuple[str, str], Row]:
        """Figures of the test split over draws and seeds, by place and method."""
        return figures(self.tested, ["point", "method"])

    @property
    def worst(self) -> str:
        """What the worst-group accuracy is of, in words; see `Metrics.worst`.

        Where that differs from place to place, the figures' parts say it.
        """
        words = {worst_words(row) for row in self.rows.values()}
        if len(words) == 1:
            return words.pop()
        return "worst class" if any(word.endswith("classes") for word in words) else "worst group"

    @cached_property
    def names(self) -> dict[str, str]:
        """Of the swept keys, as few of their last parts as tell them apart."""
        return short_paths(self.sweep)

    @cached_property
    def places(self) -> list[dict[str, Any]]:
        """Places of the sweep, in its order; each stands for all of its draws."""
        return list({self.place_name(point.at): point.at for point in self.points}.values())

    @cached_property
    def gains(self) -> list[Gain]:
        """What AGRE-KD gains over every other distillation, at every place."""
        others = [m for m in self.methods if is_distilled(m) and m != OURS]
        gains = (self._gain(at, method) for at in self.places for method in others)
        return [gain for gain in gains if gain is not None]

    @cached_property
    def panels(self) -> list[Panel]:
        """The places, apart by all swept keys but the last."""
        *others, last = list(self.sweep) or [""]
        apart: dict[str, list[dict[str, Any]]] = {}
        for at in self.places:
            where = ", ".join(f"{self.names[key]} = {in_words(at[key])}" for key in others)
            apart.setdefault(where, []).append(at)
        return [
            Panel(
                where,
                places,
                [f"{self.names[last]} {in_words(at[last])}" if last else "" for at in places],
                [m for m in self.methods if any(self.row(at, m) for at in places)],
            )
            for where, places in apart.items()
        ]

    def row(self, at: Mapping[str, Any], method: str) -> Row | None:
        """The figures of a method at a place."""
        return self.rows.get((self.place_name(at), method))

    def published_at(self, at: Mapping[str, Any], method: str, metric: str) -> float | None:
        """A published figure in percent."""
        return self.published.at(at, method, metric) if self.published else None

    def gain(self, at: Mapping[str, Any], against: str) -> Gain | None:
        """The gain over a method at a place."""
        return next((g for g in self.gains if g.at == at and g.against == against), None)

    def place_name(self, at: Mapping[str, Any]) -> str:
        """A place in words: `debiased=2 temperature=4`."""
        parts = (f"{name}={in_words(at[key])}" for key, name in self.names.items() if key in at)
        return " ".join(parts) or "job"

    def metrics(self) -> dict[str, float]:
        """The summary as MLflow names it: `test/worst_group_accuracy/<place>/<method>`."""
        values: dict[str, float] = {}
        for at, method, row in self._measured:
            place = f"{self.place_name(at)}/{method}"
            values |= row[WORST_GROUP].named(f"test/{WORST_GROUP}", place)
        for gain in self.gains:
            key = f"{self.place_name(gain.at)}/{OURS}_minus_{gain.against}/test/{WORST_GROUP}"
            values[key] = gain.difference.mean
        return values

    def heading(self, what: str = "Accuracy") -> str:
        """What the figures are, in words.

        Args:
            what: metric.
        """
        runs = max((row[WORST_GROUP].count for _, _, row in self._measured), default=0)
        draws = f"{len(self.draws)} draws of data and teachers" if len(self.draws) > 1 else ""
        seeds = runs // max(1, len(self.draws))
        over = " × ".join(part for part in (draws, f"{seeds} seeds" if seeds > 1 else "") if part)
        over += "" if draws or not over else f", {ONE_DRAW}"
        return f"{what} on the test split in %" + (f", mean ± sd over {over}" if over else "")

    @property
    def paired_over(self) -> str:
        """What differences are over, where all can be paired."""
        if self.unit == "draw":
            return f"{len(self.draws)} draws of data and teachers"
        return seeds_of_one_draw(max((gain.difference.seeds for gain in self.gains), default=0))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; shares, and percent where figures are published ones."""
        return {
            "study": self.name,
            "folder": self.folder,
            "sweep": self.sweep,
            "draws": self.draws,
            "methods": self.methods,
            "published": self.published.model_dump(mode="json") if self.published else None,
            "figures": [self._figures(*measured) for measured in self._measured],
            "gains": [asdict(gain) for gain in self.gains],
            "points": [
                {
                    **vars(point),
                    "outcomes": [
                        {key: value for key, value in asdict(o).items() if key != "history"}
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

    def _figures(self, at: dict[str, Any], method: str, row: Row) -> dict[str, Any]:
        published = {name: self.published_at(at, method, name) for name in METRICS}
        return {
            "at": at,
            "method": method,
            "mean": {name: row[name].mean for name in METRICS},
            "std": {name: row[name].sd for name in METRICS},
            "count": row[WORST_GROUP].count,
            "published": {name: value for name, value in published.items() if value is not None},
            "measured_over": row[WORST_GROUP].part,
        }

    @property
    def _measured(self) -> list[tuple[dict[str, Any], str, Row]]:
        """Figures by place and method, in the order of both."""
        return [
            (at, method, row)
            for at in self.places
            for method in self.methods
            if (row := self.row(at, method))
        ]

    def difference(self, at: Mapping[str, Any], of: str, against: str) -> PairedDifference | None:
        """Worst-group accuracy of a method minus another's at a place, paired as gains are."""
        return paired_difference(*self._sides(at, of, against))

    def _gain(self, at: dict[str, Any], against: str) -> Gain | None:
        sides = self._sides(at, OURS, against)
        difference = paired_difference(*sides)
        if difference is None:
            return None
        return Gain(at, against, difference, list(differences_by_seed(*sides).values()))

    def _sides(self, at: Mapping[str, Any], *methods: str) -> list[dict[int, float]]:
        here = self.tested[self.tested["point"] == self.place_name(at)]
        return [by_pair(here, method, self.unit) for method in methods]
