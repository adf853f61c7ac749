"""Points of a study in words, and what others published of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from agrekd_ray.results.metrics import ACCURACY, GROUP, WORST_GROUP
from agrekd_ray.settings import Settings

Percents = dict[str, Annotated[float, Field(ge=0, le=100)]]


class PublishedFigures(Settings):
    """Published results at one point of a study, in percent.

    Attributes:
        at: the point: a value for each key of the sweep that matters.
        worst_group_accuracy: by method.
        accuracy: by method.
        groups: accuracy by group, then by method.
    """

    at: dict[str, Any] = Field(default_factory=dict)
    worst_group_accuracy: Percents = Field(default_factory=dict)
    accuracy: Percents = Field(default_factory=dict)
    groups: dict[str, Percents] = Field(default_factory=dict)

    def of(self, metric: str) -> Percents:
        """Figures of a metric by method; see `Published.at`."""
        if metric.startswith(GROUP):
            return self.groups.get(metric.removeprefix(GROUP), {})
        return {WORST_GROUP: self.worst_group_accuracy, ACCURACY: self.accuracy}[metric]


class Published(Settings):
    """Results to stand beside one's own.

    Attributes:
        source: where they were published.
        figures: by point.
    """

    source: str
    figures: tuple[PublishedFigures, ...] = ()

    def at(self, settings: Mapping[str, Any], method: str, metric: str) -> float | None:
        """A published figure in percent; None where there is none.

        Args:
            settings: of the point, by key.
            method: name of the method.
            metric: `worst_group_accuracy`, `accuracy`, or `group/NAME`, the accuracy of a group.
        """
        for figures in self.figures:
            here = all(settings.get(key) == value for key, value in figures.at.items())
            if here and method in figures.of(metric):
                return float(figures.of(metric)[method])
        return None


def in_words(value: Any) -> str:
    """A swept value as people read it; a block of keys goes by its name."""
    if isinstance(value, Mapping):
        given = {k: v for k, v in value.items() if v is not None and v != {}}
        rest = {key: inner for key, inner in given.items() if key != "name"}
        parts = [
            in_words(v) if isinstance(v, Mapping) else f"{k}={in_words(v)}" for k, v in rest.items()
        ]
        name = [str(value["name"])] if "name" in value else []
        return " ".join([*name, *parts]) or "default"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
