"""What a job says of a study, and the changes to the job that each of its points comes down to."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from agrekd_ray.results.metrics import short_paths
from agrekd_ray.results.points import in_words

FIXED = {
    "name",
    "runs",
    "methods",
    "seeds",
    "sweep",
    "draws",
    "published",
    "tracking",
    "ray",
    "guidance",
    "outputs",
    "plots",
}
"""Blocks of a job that every point of a study shares."""


def _several(values: Any) -> Any:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError("a list of the values that the key takes")
    return values


def _no_value_twice(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(value in values[:number] for number, value in enumerate(values)):
        raise ValueError("a list without the same value twice")
    return values


Values = Annotated[
    tuple[Any, ...],
    BeforeValidator(_several),
    Field(min_length=1),
    AfterValidator(_no_value_twice),
]
Sweep = dict[str, Values]
"""Values by the key of the job that takes them; several keys are crossed."""


@dataclass(frozen=True)
class Setting:
    """One point of a study, as changes to its job.

    Attributes:
        label: in words, unique within the study: `debiased=2 draw=0`.
        at: value of every swept key.
        draw: number of the draw of data and teachers; None where the study has none.
    """

    label: str
    at: dict[str, Any] = field(default_factory=dict)
    draw: int | None = None

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w=.,+-]+", "-", self.label.replace(" ", ","))


def settings_of(sweep: Mapping[str, Sequence[Any]], draws: Sequence[int]) -> list[Setting]:
    """Every point: the keys crossed in their order, and every draw of each."""
    names = short_paths(sweep)
    settings = []
    for values in itertools.product(*sweep.values()):
        at = dict(zip(sweep, values, strict=True))
        words = [f"{names[key]}={in_words(value)}" for key, value in at.items()]
        for draw in draws or (None,):
            drawn = [] if draw is None else [f"draw={draw}"]
            settings.append(Setting(" ".join([*words, *drawn]) or "job", at, draw))
    return settings


def changes(setting: Setting, job: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to a job's raw values that make a point of it, by dotted path.

    A draw moves every random choice before the students: the seed of the data (splits, colours,
    views), the teachers' seeds (the pools of two draws share no model), and the draw of the
    ensemble and of the biased model. Draw 0 is the job itself.
    """
    made = dict(setting.at)
    if setting.draw:
        pool = job["teachers"]
        apart = made.get("teachers.count", pool["count"]) * setting.draw
        steps = {"data": setting.draw, "teachers": apart, "ensemble": setting.draw}
        for block, step in steps.items():
            if "seed" in job[block]:
                path = f"{block}.seed"
                made[path] = made.get(path, job[block]["seed"]) + step
    return made


def changed(raw: Mapping[str, Any], setting: Mapping[str, Any]) -> dict[str, Any]:
    """A job's raw values with values put in by dotted path; the job itself is not changed.

    A block of keys (`distillation.sample_weighting: {}`) replaces what was there; paths below it
    that come later in the setting go into it.
    """
    values = copy.deepcopy(dict(raw))
    for path, value in setting.items():
        *blocks, last = path.split(".")
        place = values
        for block in blocks:
            if not isinstance(place.get(block), dict):
                place[block] = {}
            place = place[block]
        place[last] = copy.deepcopy(value)
    return values
