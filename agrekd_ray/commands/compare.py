"""Compares runs that are in MLflow: a table, files, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from agrekd_ray.addresses import sqlite_address
from agrekd_ray.errors import RunError
from agrekd_ray.experiment.folder import Folder
from agrekd_ray.files import is_file, real, replacing
from agrekd_ray.report.compare import Comparison
from agrekd_ray.report.settings_plots import (
    Point,
    parallel_coordinates,
    parameter_effects,
    trial_history,
    worst_against_accuracy,
)
from agrekd_ray.report.style import about, draw_plots
from agrekd_ray.results.intervals import ONE_DRAW
from agrekd_ray.results.metrics import ACCURACY, MISSING, WORST_GROUP, worst_metric
from agrekd_ray.results.runs import Row, baselines, check_metric, ordered, parsed, settings
from agrekd_ray.results.state import STATE
from agrekd_ray.tracking.mlflow_reader import read
from agrekd_ray.tracking.mlflow_store import checked_address


def compare(
    console: Console,
    *,
    ids: Sequence[str] = (),
    experiments: Sequence[str] = (),
    filter: str | None = None,
    uri: str | None = None,
    runs: Path = Path("runs"),
    baseline: str | None = None,
    sort: str | None = None,
    metrics: Sequence[str] = (),
    csv: Path | None = None,
    markdown: Path | None = None,
    plots: Path | None = None,
    formats: Sequence[str] = ("png",),
) -> list[Row]:
    """Prints a comparison of runs, and writes what is asked for.

    Args:
        console: for the table, and the names of what is written.
        ids: run ids, or folders of runs; a job or a search stands for its students and trials.
            All runs without.
        experiments: names of experiments to look in; all without.
        filter: in MLflow's search language; met by students and trials, or else by their jobs.
        uri: tracking URI; None for `mlflow.db` in `runs`.
        runs: the folder of the runs.
        baseline: a label, name or method that others are compared with, seed by seed; None for
            `default` or `aver`, where they are there.
        sort: metric that orders the rows, the best first; None for worst-group accuracy,
            or worst-class accuracy where the data have no groups.
        metrics: further columns.
        csv: a file to write.
        markdown: a file to write.
        plots: a folder for pictures; one that has nothing to show is not drawn.
        formats: of the pictures: `png`, `pdf` or `svg`.

    Returns:
        The rows, in order.

    Raises:
        TrackingError: there is no store, or nothing in it that was asked for.
        RunError: a file cannot be written, or a folder's run is not in MLflow.
    """
    ids = [_id_of(each) for each in ids]
    place = checked_address(uri) if uri else sqlite_address(runs.absolute() / "mlflow.db")
    store = read(place, ids, experiments, filter)
    for metric in (*metrics, *([sort] if sort else [])):
        check_metric(metric, store.metrics)
    # A search measures the test split when it is over.
    split = "val" if f"test/{WORST_GROUP}" not in store.metrics else "test"
    worst = worst_metric(split, store.metrics)
    comparison = Comparison(
        rows=(rows := ordered(store.rows, sort or worst)),
        split=split,
        worst=worst,
        sort=sort or worst,
        metrics=metrics,
        baseline=baselines(store.rows, baseline),
        teacher_steps=store.teacher_steps,
    )
    comparison.render(console)
    written = [path for path in (csv, markdown) if path is not None]
    try:
        if csv is not None:
            comparison.write_csv(csv)
        if markdown is not None:
            with replacing(markdown) as draft:
                draft.write_text(comparison.markdown(), encoding="utf-8")
        if plots is not None:
            written += _drawn(comparison, plots, formats)
    except OSError as error:
        raise RunError(
            f"Cannot write {error.filename or 'the comparison'}: {error.strerror or error}. "
            "Give a place that can be written."
        ) from error
    if written:
        console.print()
        for path in written:
            console.print(f"written  {path}", soft_wrap=True)
    return rows


def _id_of(run: str) -> str:
    """The id in MLflow of a run that is named by its folder; what is none, as it is."""
    if not is_file(Path(run) / STATE):
        return run
    found = Folder(real(Path(run))).state().tracking_run
    if found is None:
        raise RunError(f"{run}: this run is not in MLflow; `agrekd report` reads its folder.")
    return found


def points(rows: Sequence[Row], metrics: Sequence[str]) -> list[Point]:
    """Rows as pictures take them.

    Args:
        rows: of a comparison.
        metrics: that are drawn.
    """
    varying = settings(rows)
    of_method: dict[str, set[str]] = {}
    for row, values in varying.items():
        of_method.setdefault(row.first.method, set()).update(values)
    if all(row.first.number is None for row in rows):
        # What another row of the same method has, and this one does not.
        varying = {
            row: dict.fromkeys(of_method[row.first.method], MISSING) | values
            for row, values in varying.items()
        }
    # Beside what a job may set; alone, it would be what the labels say.
    methods = any(varying.values()) and all(row.first.number is None for row in rows)
    return [
        Point(
            label=row.label,
            number=row.first.number,
            settings={"method": row.name, **varying[row]} if methods else varying[row],
            metrics={m: value for m in metrics if (value := row.mean(m)) is not None},
            spread={m: value for m in metrics if (value := row.spread(m)) is not None},
            state=row.state,
            method=row.first.method if row.first.number is None else "",
        )
        for row in rows
    ]


def _drawn(comparison: Comparison, folder: Path, formats: Sequence[str]) -> list[Path]:
    metric, trials = comparison.sort, comparison.parts.get("trial", [])
    wanted = list(dict.fromkeys((comparison.worst, f"{comparison.split}/{ACCURACY}", metric)))
    # What follows a search stands beside its trials; students of jobs have pictures of their own.
    jobs = [row for row in comparison.rows if row.first.number is None and not row.first.searches]
    others = [row for row in comparison.rows if row not in jobs]
    drawings: dict[str, Callable[[], Figure | None]] = {}
    for rows, of in ((others, ""), (jobs, "_of_students" if others else "")):
        if rows:
            drawn = points(rows, wanted)
            varied = points(trials, wanted) if trials and rows is others else drawn
            note, against = _note(rows), worst_against_accuracy
            drawings |= {
                f"worst_against_accuracy{of}": partial(against, drawn, comparison.worst, note=note),
                f"parameter_effects{of}": partial(parameter_effects, varied, metric, note=note),
                f"parallel_coordinates{of}": partial(
                    parallel_coordinates, varied, metric, note=note
                ),
            }
    searches = list(dict.fromkeys(row.first.parent for row in trials))
    for search in searches:
        those = [row for row in trials if row.first.parent == search]
        mine = points(those, wanted)
        name = "trial_history" if len(searches) == 1 else f"trial_history_{search[:8]}"
        drawings[name] = partial(trial_history, mine, metric, note=_note(those))
    return draw_plots(folder, drawings, formats=formats)


def _note(rows: Sequence[Row]) -> str:
    """Of which data and over how many seeds rows are."""
    worlds = [row.first.world for row in rows]
    named = (of.get("data.factory", of.get("data.name", "")) for of in worlds)
    data = dict.fromkeys(str(parsed(name)) for name in named)
    counts = sorted({len(row.seeds) for row in rows})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    over = f"{seeds} seed{'s' * (counts[-1] != 1)} a row, each of {ONE_DRAW}"
    return about(", ".join(filter(None, data)), "", None, over)
