"""What the page of a job holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agrekd_ray.report import tables
from agrekd_ray.report.archive import read_job
from agrekd_ray.report.facts import (
    Fact,
    as_yaml,
    cost_facts,
    data_facts,
    date,
    listed,
    student_facts,
    teacher_facts,
)
from agrekd_ray.report.words import (
    WGA,
    best_of,
    degraded,
    difference_in_words,
    finite,
    in_words,
    over,
    test_metrics,
    tested,
)
from agrekd_ray.results import Outcome
from agrekd_ray.tracking.labels import is_distilled, label
from agrekd_ray.tracking.tables import paired

JOB = "job.yaml"


def headline(outcomes: Sequence[Outcome]) -> str:
    """The result of a job in a sentence: its best distilled student, held against AVER.

    Args:
        outcomes: finished students.
    """
    rows = tested(outcomes)
    best = best_of(rows)
    if best is None:
        return "No distilled student is finished, so there is nothing to hold against AVER."
    text = f"{label(best.method)} is the best distilled student: {in_words(best)}"
    if best.method != "aver":
        found = difference_in_words(paired(outcomes, best.method, "aver"))
        return f"{text}, {found} against {label('aver')}." if found else f"{text}."
    second = best_of(row for row in rows if row is not best)
    if second is None:
        return f"{text}. There is no other to hold against it."
    found = difference_in_words(paired(outcomes, second.method, "aver")) or in_words(second)
    return f"{text}. The next is {label(second.method)}: {found}."


def remarks(outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader of the headline should know besides.

    Args:
        outcomes: finished students.

    Returns:
        AGRE-KD against AVER where the headline is about others, and the best reference where it
        does better than every distilled student.
    """
    rows = tested(outcomes)
    best, found = best_of(rows), []
    difference = difference_in_words(paired(outcomes, "agre_kd", "aver"))
    if best and best.method not in ("agre_kd", "aver") and difference:
        found.append(f"{label('agre_kd')} against {label('aver')}: {difference}.")
    references = finite(row for row in rows if not is_distilled(row.method))
    leading = max(references, key=lambda row: row.mean[WGA], default=None)
    if leading and best is None:
        found.append(f"{label(leading.method)} is the best reference: {in_words(leading)}.")
    elif leading and best and leading.mean[WGA] > best.mean[WGA]:
        found.append(
            f"{label(leading.method)}, a reference without distillation, does better than every "
            f"distilled student: {in_words(leading)}."
        )
    return found


def content(folder: Path) -> dict[str, Any]:
    """What the template needs of the job in a folder, besides its plots."""
    run = read_job(folder)
    rows = tested(run.outcomes)
    best = best_of(rows)
    return {
        "kind": "job",
        "name": run.job.name,
        "date": date(run.job.folder),
        "headline": headline(run.outcomes),
        "remarks": [*remarks(run.outcomes), *degraded(run.outcomes, label)],
        "facts": [
            *data_facts(
                run.settings,
                run.job.classes,
                run.job.groups,
                run.job.splits,
                test_metrics(run.outcomes),
            ),
            *teacher_facts(run.members, run.biased),
            *student_facts(run.settings),
            Fact("Seeds", listed(run.settings.seeds)),
            *cost_facts(run.job.cost),
            Fact("Folder", str(folder), code=True),
            Fact("To run it again", f"agrekd run {shlex.quote(str(folder / JOB))}", code=True),
        ],
        "over": over(rows),
        "comparison": tables.comparison(
            "Methods on the test split",
            [(row, [label(row.method), row.teachers], row is best) for row in rows],
            ["Method", "Teachers"],
        ),
        "seeds": tables.by_seed(run.outcomes, label),
        "weights": tables.weights(run.outcomes, run.members, label),
        "influence": tables.influence(run.outcomes, run.members, label),
        "agreement": tables.agreement(run.diagnostics),
        "teachers": tables.teachers(run.members, run.biased),
        "configuration": [("The job", as_yaml(run.job.settings))],
        "versions": run.job.versions,
    }
