"""What people see of a job: its table, files, plots and page, and its summary in MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from agrekd_ray.files import exists
from agrekd_ray.report import ensemble, facts, tables
from agrekd_ray.report.archive import RESULTS, STUDENTS, kept_apart, plain, read_job, write_results
from agrekd_ray.report.labels import labels_used
from agrekd_ray.report.models import (
    BY_GROUP,
    TEST,
    compared,
    over_seeds,
    students,
    teachers,
    tested,
)
from agrekd_ray.report.tables import Table
from agrekd_ray.results import Diagnostics, Metrics, Span, StudentResult, TeacherCost, TeacherResult
from agrekd_ray.results.arrays import ARRAYS
from agrekd_ray.results.frame import (
    Row,
    best_distilled,
    best_of,
    coverage_of,
    coverage_values,
    difference,
    figures,
    frame,
    is_coverage,
    worst_words,
)
from agrekd_ray.results.intervals import seeds_of_one_draw
from agrekd_ray.results.many import are_many, ends
from agrekd_ray.results.metrics import (
    ACCURACY,
    CLASS,
    ECE,
    GROUP,
    WORST_CLASS,
    WORST_GROUP,
    WORST_OVERLAPPING,
    is_distilled,
    label,
    measured_over,
    metric,
)
from agrekd_ray.teachers import family

JOB = "job.yaml"
# From left to right on the screen, and what gives way last.
_SCREEN = (
    *("method", "teachers", WORST_GROUP, WORST_OVERLAPPING, ACCURACY, BY_GROUP),
    *("balanced_accuracy", WORST_CLASS, ECE),
)
_IMPORTANCE = (
    *("method", WORST_GROUP, ACCURACY, "teachers", BY_GROUP, WORST_OVERLAPPING, ECE),
    *("balanced_accuracy", WORST_CLASS),
)
_SLOWEST = 3
"""Backbones that have a line of their own at the end of a run."""


def render(
    outcomes: Sequence[StudentResult],
    members: Sequence[TeacherResult],
    console: Console,
    note: str = "",
) -> None:
    """Prints the methods of a job, as wide as the console allows, and a few lines below.

    All figures are percent. The best distilled student's worst-group accuracy is bold.

    Args:
        outcomes: finished students.
        members: the ensemble, for the line that says how good the teachers are.
        console: where to print.
        note: what stands below all of it; see `labels_used`.
    """
    rows = tested(outcomes)
    best = best_distilled(rows)
    table = _on_screen(outcomes, rows)
    if table is None:
        console.print("No student is finished yet.")
        return
    importance = [*_IMPORTANCE, *(column.block for column in table.columns)]
    tables.show(table, console, importance, (list(rows).index(best), WORST_GROUP) if best else None)
    console.print()
    for line in _below(outcomes, members):
        console.print(Text(line))
    if note:
        console.print(Text(note), soft_wrap=True)


def description(outcomes: Sequence[StudentResult], members: Sequence[TeacherResult]) -> str:
    """The comparison as Markdown, for the description of the job's run; empty without students."""
    table = _on_screen(outcomes, tested(outcomes))
    if table is None:
        return ""
    important = table.named(("method", "teachers", WORST_GROUP, ACCURACY))
    return "\n\n".join(
        [*reversed(_below(outcomes, members)), table.title, tables.markdown(important)]
    )


def _on_screen(outcomes: Sequence[StudentResult], rows: Mapping[str, Row]) -> Table | None:
    title = f"Accuracy on the {TEST} split in %, {over_seeds(rows)}" if rows else ""
    table = compared(outcomes, title, method="Method", teachers="Teachers")
    if table is None:
        return None
    known = any(name.startswith(GROUP) for row in rows.values() for name in row)
    classes = () if known else (WORST_CLASS,)  # which the first figures are already
    further = (c.over for c in table.columns if c.over and c.over != BY_GROUP)
    columns = [column for column in table.columns if column.below != "overlapping"]
    return replace(table, columns=columns).named(
        dict.fromkeys([*(name for name in _SCREEN if name not in classes), *further])
    )


def _below(outcomes: Sequence[StudentResult], members: Sequence[TeacherResult]) -> list[str]:
    lines = []
    worst = worst_words(next(iter(tested(outcomes).values())))
    if shares := _teachers_range(members):
        lines.append(f"Teachers' {worst}: {shares}")
    if gain := difference(outcomes, "agre_kd", "aver"):
        against = f"{label('agre_kd')} against {label('aver')}, {worst} by seed"
        lines.append(f"{against}: {gain.in_words()}")
    return lines


def _teachers_range(members: Sequence[TeacherResult]) -> str:
    by_kind: dict[str, list[float]] = {}
    for member in members:
        if TEST in member.metrics:
            by_kind.setdefault(member.kind, []).append(member.metrics[TEST].worst_group_accuracy)
    parts = []
    for kind, shares in by_kind.items():
        ends = dict.fromkeys(map(metric(WORST_GROUP).text, (min(shares), max(shares))))
        parts.append(f"{len(shares)} {family(kind)} {' … '.join(ends)}")
    return ", ".join(parts)


def degraded_lines(
    outcomes: Sequence[StudentResult], name: Callable[[str], str] = label
) -> list[str]:
    """Which students lost teachers on the way, a line each (`fleet.on_teacher_loss: drop`).

    Args:
        outcomes: finished students.
        name: what people call a method.
    """
    return [f"{name(o.method)}, seed {o.seed}: {o.degraded}" for o in outcomes if o.degraded]


def render_degraded(lines: Iterable[str], console: Console) -> None:
    """Prints what `degraded_lines` says, if anything."""
    for line in lines:
        console.print(Text(f"degraded    {line}", style="yellow"), soft_wrap=True)


# --- files -----------------------------------------------------------------------------------


def publish_job(
    folder: Path,
    outcomes: Sequence[StudentResult],
    members: Sequence[TeacherResult],
    biased: TeacherResult | None,
    job: dict[str, Any],
    diagnostics: Diagnostics,
    *,
    anew: bool = True,
    draw: bool = True,
) -> None:
    """Writes results.json, the CSV files, and what there is to draw as `plots/*.png`.

    The job's settings say in which formats there are plots, and what data they are of.

    Args:
        folder: of the job.
        outcomes: finished students.
        members: the ensemble.
        biased: the biased model, where the job has one.
        job: what to say about the job itself; values that JSON does not know become text.
        diagnostics: of the ensemble.
        anew: false writes what is missing and leaves the rest as it is.
        draw: whether there are plots.

    Raises:
        OSError: where one cannot be written.
    """
    if anew or not exists(folder / "results.csv"):
        write_csv(outcomes, folder / "results.csv")
    teachers_csv, check = folder / ensemble.TEACHERS, diagnostics.ensemble
    if check is not None and (anew or not exists(teachers_csv)):
        ensemble.write_csv(check, teachers_csv)
    if anew:
        write_json(folder / RESULTS, outcomes, members, biased, job, diagnostics)
    if draw:
        from agrekd_ray.report import plots  # half a second: see `import_what_draws`
        from agrekd_ray.report.style import draw_plots

        settings = job.get("settings", {})
        data, formats = data_of(settings), settings.get("plots", ("png",))
        drawings = {
            "worst_group_by_method": lambda: plots.worst_group_by_method(outcomes, data),
            "training_curves": lambda: plots.training_curves(outcomes, data),
            "agreement_by_group": lambda: plots.agreement_by_group(diagnostics, data),
            **plots.of_training(outcomes, members, data),
        }
        draw_plots(folder / "plots", drawings, anew=anew, formats=formats)


def data_of(settings: Mapping[str, Any]) -> str:
    """The name of the data set in the settings of a job; empty where there is none."""
    data = settings.get("data", {})
    return str(data.get("factory", data.get("name", "")))


def import_what_draws() -> None:
    """Import what the results need and nothing before them: a second that students train in."""
    import scipy.stats  # noqa: F401

    import agrekd_ray.report.plots  # noqa: F401


def write_csv(
    outcomes: Sequence[StudentResult], path: Path, where: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes a row for each method, seed and split; accuracies are shares.

    The column `groups` holds the accuracy by evaluation group, as compact JSON, and a column
    `MEASURE_by_group` what further measures there are, of many groups the ten lowest and the ten
    highest values; where the data have overlapping groups, two
    columns more hold the smallest of theirs, and all of them; where groups or classes have no
    sample in a split, a column `measured_over` says how many have.

    Args:
        outcomes: finished students.
        path: the file, replaced as a whole.
        where: further columns in front, by name: the same ones for each outcome.

    Raises:
        OSError: where it cannot be written.
    """
    rows = [
        {
            **place,
            "method": outcome.method,
            "teachers": outcome.teachers,
            "seed": outcome.seed,
            "split": split,
            ACCURACY: metrics.accuracy,
            WORST_GROUP: metrics.worst_group_accuracy,
            "groups": _compact(metrics.groups),
            WORST_OVERLAPPING: metrics.worst_overlapping_group_accuracy,
            "overlapping": metrics.overlapping and _compact(metrics.overlapping),
            "measured_over": measured_over(metrics.coverage),
            **{f"{name}_by_group": _compact(of) for name, of in metrics.by_group.items()},
        }
        for place, outcome in zip(where or [{}] * len(outcomes), outcomes, strict=True)
        for split, metrics in outcome.splits.items()
    ]
    tables.write_csv(rows, path, "method", [WORST_OVERLAPPING, "overlapping", "measured_over"])


def write_json(
    path: Path,
    outcomes: Sequence[StudentResult],
    members: Sequence[TeacherResult],
    biased: TeacherResult | None,
    job: dict[str, Any],
    diagnostics: Diagnostics | None = None,
) -> None:
    """Writes everything that reports know about a job; arguments as `publish_job`.

    The object has the keys `job`, `members`, `biased`, `outcomes` (with history), `summary` and
    `diagnostics`.

    Raises:
        OSError: where it cannot be written.
    """
    content = {
        "job": job,
        "members": members,
        "biased": biased,
        "outcomes": [kept_apart(outcome, path.parent) for outcome in outcomes],
        "summary": summary(outcomes),
        "diagnostics": diagnostics or Diagnostics(),
    }
    write_results(path, content)


def summary(outcomes: Sequence[StudentResult]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over seeds, by method and split, as plain values.

    Those by group are left out where groups are many.
    """
    table = frame(outcomes)
    rows = []
    for (method, split), row in figures(table, ["method", "split"]).items():
        mine = [o for o in outcomes if o.method == method and split in o.splits]
        groups = [name for name in row if name.startswith((GROUP, CLASS))]
        shown = {
            re.sub(f"^{CLASS}", GROUP, name): figure
            for name, figure in row.items()
            if not is_coverage(name) and not ("/" in name and are_many(len(groups)))
        }
        line = {"method": method, "teachers": mine[0].teachers, "split": split}
        rows.append(
            {
                **line,
                "seeds": sorted(outcome.seed for outcome in mine),
                "mean": {name: figure.mean for name, figure in shown.items()},
                "std": {name: figure.sd for name, figure in shown.items()},
                "worst": worst_words(row),
                "groups_known": not worst_words(row).endswith("class"),
                "coverage": coverage_of({name: figure.mean for name, figure in row.items()}),
            }
        )
    return rows


def _compact(shares: Mapping[str, float]) -> str:
    rounded = {name: plain(round(shares[name], 6)) for name in ends(shares)}
    return json.dumps(rounded, ensure_ascii=False, separators=(",", ":"))


# --- MLflow ----------------------------------------------------------------------------------


def summary_metrics(outcomes: Sequence[StudentResult]) -> dict[str, float]:
    """The summary as MLflow names it: `test/worst_group_accuracy/<method>`, one chart for all.

    Args:
        outcomes: finished students.

    Returns:
        Mean worst-group accuracy on the test split, its standard deviation where there are
        several seeds (`test/worst_group_accuracy_sd/<method>`),
        `agre_kd_minus_aver/test/worst_group_accuracy` where both methods share a seed, and where
        groups or classes have no sample, how many have (`test/groups_with_samples`, ...).
    """
    values: dict[str, float] = {}
    for method, row in tested(outcomes).items():
        means = coverage_values({name: figure.mean for name, figure in row.items()})
        values |= {f"{TEST}/{name}": value for name, value in means.items()}
        values |= row[WORST_GROUP].named(f"{TEST}/{WORST_GROUP}", method)
    if gain := difference(outcomes, "agre_kd", "aver"):
        values[f"agre_kd_minus_aver/{TEST}/{WORST_GROUP}"] = gain.mean
    return values


# --- words -----------------------------------------------------------------------------------


def spent(outcomes: Sequence[StudentResult], effort: TeacherCost | None) -> list[tuple[str, str]]:
    """Where the time went: the students' steps, their guidance, the teachers.

    Args:
        outcomes: finished students.
        effort: of the teachers, where there were any.

    Returns:
        What took the time, and `1,350 × 4.1 ms = 5.5 s`; of many backbones, the slowest ones.
    """
    trained = [epoch for outcome in outcomes for epoch in outcome.history]
    steps = Span(sum(e.steps for e in trained), sum(e.seconds for e in trained))
    lines = [("students' steps", steps, "")]
    guided = [e for outcome in outcomes if outcome.teachers != "-" for e in outcome.history]
    if asked := sum(epoch.steps for epoch in guided):
        waited = sum(epoch.guidance_seconds for epoch in guided)
        share = waited / max(sum(epoch.seconds for epoch in guided), 1e-9)
        replayed = sum(epoch.replayed_steps for epoch in guided) / asked
        note = f"{share:.0%} of the taught students' time; {replayed:.0%} replayed"
        lines.append(("of them, guidance", Span(asked, waited), note))
    spans = effort.spans if effort else {}
    forwards = [(name, span) for name, span in spans.items() if name.startswith("forward ")]
    forwards.sort(key=lambda forward: -forward[1].milliseconds)
    lines += [(name, span, "") for name, span in forwards[:_SLOWEST]]
    if others := [span for _, span in forwards[_SLOWEST:]]:
        lines.append((f"forward of {len(others)} others", sum(others, Span()), ""))
    again = f"{effort.retries} asked again" if effort and effort.retries else ""
    lines.append(("waiting for teachers", spans.get("gather", Span()), again))
    lines.append(("weighting", spans.get("weigh", Span()), ""))
    return [
        (what, span.in_words + (f" ({note})" if note else ""))
        for what, span, note in lines
        if span.count
    ]


def headline(outcomes: Sequence[StudentResult]) -> str:
    """The result of a job: its best distilled student, held against AVER, and what ± is over."""
    rows = tested(outcomes)
    best = best_distilled(rows)
    if best is None:
        return "No distilled student is finished, so there is nothing to hold against AVER."
    return f"{_best_in_words(outcomes, rows, best)} {_spread_in_words(rows[best])}"


def _spread_in_words(row: Row) -> str:
    count = row[WORST_GROUP].count
    if count > 1:
        return f"± is the standard deviation over {seeds_of_one_draw(count)}."
    return f"All of it is over {seeds_of_one_draw(1)}, so nothing says how sure it is."


def _best_in_words(outcomes: Sequence[StudentResult], rows: Mapping[str, Row], best: str) -> str:
    text = f"{label(best)} is the best distilled student: {on_the_worst(rows[best])}"
    if best != "aver":
        gain = difference(outcomes, best, "aver")
        return f"{text}, {gain.in_words()} against {label('aver')}." if gain else f"{text}."
    second = best_distilled({name: row for name, row in rows.items() if name != best})
    if second is None:
        return f"{text}. There is no other to hold against it."
    gain = difference(outcomes, second, "aver")
    behind = gain.in_words() if gain else on_the_worst(rows[second])
    return f"{text}. The next is {label(second)}: {behind}."


def remarks(outcomes: Sequence[StudentResult]) -> list[str]:
    """What a reader of the headline should know besides.

    It is AGRE-KD against AVER where the headline is about others, and the best reference where it
    does better than every distilled student.
    """
    rows = tested(outcomes)
    best, sentences = best_distilled(rows), []
    gain = difference(outcomes, "agre_kd", "aver")
    if best not in (None, "agre_kd", "aver") and gain:
        sentences.append(f"{label('agre_kd')} against {label('aver')}: {gain.in_words()}.")
    leading = best_of({name: row for name, row in rows.items() if not is_distilled(name)})
    if leading and best is None:
        sentences.append(f"{label(leading)} is the best reference: {on_the_worst(rows[leading])}.")
    elif leading and best and rows[leading][WORST_GROUP].mean > rows[best][WORST_GROUP].mean:
        sentences.append(
            f"{label(leading)}, a reference without distillation, does better than every "
            f"distilled student: {on_the_worst(rows[leading])}."
        )
    return sentences


def on_the_worst(row: Row) -> str:
    """`39.0 ± 2.4 % on the worst group`."""
    return f"{row[WORST_GROUP].words} % on the {worst_words(row)}"


# --- the page --------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    """What the template needs of the job in a folder, besides its plots."""
    run = read_job(folder)
    rows = tested(run.outcomes)
    tests = [outcome.splits[TEST] for outcome in run.outcomes if TEST in outcome.splits]
    best = best_distilled(rows)
    return {
        "kind": "job",
        "name": run.job.name,
        "date": facts.date(run.job.folder),
        "headline": headline(run.outcomes),
        "remarks": remarks(run.outcomes),
        "degraded": degraded_lines(run.outcomes),
        **ensemble.content(run.diagnostics.ensemble),
        "facts": [
            *facts.data(run.settings, run.job, tests),
            *facts.teachers(run.members, run.biased),
            facts.labels(labels_used(run.job.settings, groups_known=_groups_known(tests))),
            facts.student(run.settings),
            facts.Fact("Seeds", facts.listed(run.settings.seeds)),
            facts.by_group(run.job, run.members, f"{STUDENTS}/*/{ARRAYS}, {ARRAYS}"),
            *facts.run(folder, run.job, "run", JOB),
        ],
        "over": over_seeds(rows),
        "comparison": compared(run.outcomes, strong=best, method="Method", teachers="Teachers"),
        **students(run.outcomes, run.members, label),
        "agreement": ensemble.agreement(run.diagnostics),
        "teachers": teachers(run.members, run.biased),
        "configuration": [("The job", facts.as_yaml(run.job.settings))],
        "versions": run.job.versions,
    }


def _groups_known(measured: Sequence[Metrics]) -> bool:
    return any(metrics.groups_known for metrics in measured)
