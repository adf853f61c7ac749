"""Terms and what a page says of them: data, teachers, students, cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from agrekd_ray.passwords import without_password
from agrekd_ray.report.archive import JobSettings
from agrekd_ray.results import Cost, Metrics, TeacherResult
from agrekd_ray.results.labels import family
from agrekd_ray.results.metrics import setting_text

_MOST_NAMES = 12


@dataclass(frozen=True)
class Fact:
    """A term and what there is to say of it.

    Attributes:
        term: the term.
        text: in words.
        code: whether the text is for a terminal.
    """

    term: str
    text: str
    code: bool = False


def data_facts(
    job: JobSettings,
    classes: Sequence[str],
    groups: Sequence[str],
    splits: str,
    tested: Sequence[Metrics],
) -> list[Fact]:
    """Data, classes, groups with samples of test, and splits where the data know of them."""
    counts = tested[0].counts if tested else {}
    told = [f"{name} ({counts[name]:,})" if name in counts else name for name in groups]
    details = [
        f"{key} {setting_text(value)}"
        for key, value in job.data.items()
        if key != "name" and isinstance(value, str | int | float)
    ]
    return [
        Fact("Data", f"{job.data.get('name', '')}: {', '.join(details)}"),
        Fact("Classes", f"{len(classes)}: {listed(classes)}"),
        Fact("Groups (test samples)" if counts else "Groups", listed(told)),
        *split_facts(splits),
    ]


def split_facts(splits: str) -> list[Fact]:
    """What says the splits, and their sizes."""
    return [Fact("Splits", splits)] if splits else []


def teacher_facts(members: Sequence[TeacherResult], biased: TeacherResult | None) -> list[Fact]:
    """The teachers drawn, by kind, and the biased model."""
    if not members:
        return []
    kinds = {
        kind: [m.name for m in members if m.kind == kind] for kind in (m.kind for m in members)
    }
    told = [f"{len(names)} {family(kind)}: {listed(names)}" for kind, names in kinds.items()]
    facts = [Fact("Teachers drawn", "; ".join(told))]
    return [*facts, Fact("Biased model", biased.name)] if biased else facts


def student_facts(job: JobSettings) -> list[Fact]:
    """The student's architecture and training, and how it is taught."""
    model, training = job.student.get("model"), job.student.get("training")
    parts = [str(model["name"])] if isinstance(model, dict) and "name" in model else []
    if isinstance(training, dict) and "epochs" in training:
        parts.append(f"{training['epochs']} epochs")
    parts += [
        f"{key} {setting_text(job.distillation[key])}"
        for key in ("temperature", "alpha")
        if key in job.distillation
    ]
    return [Fact("Student", ", ".join(parts))]


def cost_facts(cost: Cost) -> list[Fact]:
    """Time, and what the teachers took."""
    seconds, effort = cost.seconds, cost.effort
    facts = []
    if math.isfinite(seconds):
        took = f"{duration(seconds)} until its results were written{cost.several}"
        facts.append(Fact("Took", took))
    if effort:
        kept = f", {effort.recorded / 1e6:,.1f} MB recorded" if effort.recorded else ""
        told = (
            f"{effort.forwards:,} forward passes{kept}"
            if effort.forwards
            else "all recorded before"
        )
        facts.append(Fact("Teachers' cost", told))
    return facts


def date(folder: str) -> str:
    """When a run began, out of its folder's name; empty for a name without a stamp."""
    try:
        when = datetime.strptime(Path(folder).name[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return ""
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def duration(seconds: float) -> str:
    """In hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "less than a second"


def listed(values: Sequence[Any]) -> str:
    """Values in a row, the first dozen by name."""
    shown = ", ".join(map(str, values[:_MOST_NAMES]))
    left = len(values) - _MOST_NAMES
    return f"{shown} and {left} more" if left > 0 else shown


def as_yaml(values: dict[str, Any]) -> str:
    """Settings as a file would have them."""
    # Earlier versions kept passwords of tracking stores.
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return without_password(text)
