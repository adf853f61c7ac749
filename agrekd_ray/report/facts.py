"""Terms and what a page says of them: data, teachers, students, cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from agrekd_ray.files import DamagedError, read_json
from agrekd_ray.passwords import without_password
from agrekd_ray.report.archive import About, JobSettings
from agrekd_ray.results import ATTEMPTS, Attempt, Cost, Metrics, TeacherResult
from agrekd_ray.results.many import are_many, ends_in_words
from agrekd_ray.results.metrics import setting_text
from agrekd_ray.teachers import family

_MOST_NAMES = 12


@dataclass(frozen=True)
class Fact:
    """A term and what there is to say of it.

    Attributes:
        term: the term.
        text: in words; a page leaves out a term of which there is nothing to say.
        code: whether the text is for a terminal.
    """

    term: str
    text: str
    code: bool = False


def data(job: JobSettings, about: About, tested: Sequence[Metrics]) -> list[Fact]:
    """Data, classes, groups with samples of test, and splits where the data know of them."""
    counts = tested[0].counts if tested else {}
    groups = [f"{n} ({counts[n]:,})" if n in counts else n for n in about.groups]
    details = [
        f"{key} {setting_text(value)}"
        for key, value in job.data.items()
        if key != "name" and isinstance(value, str | int | float)
    ]
    return [
        Fact("Data", f"{job.data.get('name', '')}: {', '.join(details)}"),
        Fact("Classes", f"{len(about.classes)}: {listed(about.classes)}"),
        Fact("Groups (test samples)" if counts else "Groups", listed(groups)),
        Fact("Splits", about.splits),
    ]


def teachers(members: Sequence[TeacherResult], biased: TeacherResult | None) -> list[Fact]:
    """The teachers drawn, by kind, and the biased model."""
    names: dict[str, list[str]] = {}
    for member in members:
        names.setdefault(member.kind, []).append(member.name)
    drawn = (f"{len(those)} {family(kind)}: {listed(those)}" for kind, those in names.items())
    return [
        Fact("Teachers drawn", "; ".join(drawn)),
        Fact("Biased model", biased.name if biased and members else ""),
    ]


def by_group(about: About, members: Sequence[TeacherResult], where: str) -> Fact:
    """Where all figures are, of which tables and plots show a part; nothing where they show all.

    Args:
        about: the run.
        members: its ensemble.
        where: array files, relative to the run's folder.
    """
    groups, text = len(about.groups), ""
    if are_many(groups):
        text = f"{ends_in_words(groups)} groups are shown; all are in {where}"
    elif are_many(groups, len(members)):
        text = f"the weights and influences of {len(members):,} teachers are in {where}"
    return Fact("Figures by group", text)


def labels(line: str) -> Fact:
    """Which labels were used where; see `report.labels`."""
    return Fact("Labels used", line.removeprefix("labels used: "))


def student(job: JobSettings) -> Fact:
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
    return Fact("Student", ", ".join(parts))


def run(folder: Path, cost: Cost, command: str, file: str) -> list[Fact]:
    """Where a run is, what it took, what its teachers took, and what starts it again.

    Args:
        folder: of the run.
        cost: of it, as its results have it; its attempts add up to more, plots and MLflow among it.
        command: of `agrekd`, that takes the file.
        file: in the folder.
    """
    with suppress(OSError, DamagedError):
        if attempts := read_json(folder / ATTEMPTS, list[Attempt]):
            cost = replace(cost, seconds=sum(a.seconds for a in attempts), attempts=len(attempts))
    return [
        Fact("Took", cost.in_words),
        Fact("Teachers' cost", cost.effort.in_words if cost.effort else ""),
        Fact("Folder", str(folder), code=True),
        Fact("To run it again", f"agrekd {command} {shlex.quote(str(folder / file))}", code=True),
    ]


def date(folder: str) -> str:
    """When a run began, out of its folder's name; empty for a name without a stamp."""
    try:
        when = datetime.strptime(Path(folder).name[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return ""
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


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
