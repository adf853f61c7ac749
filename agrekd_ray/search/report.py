"""A search on the screen and in its folder: trials, rules, and whether the winner is better."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean, stdev

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agrekd_ray.comparison.plots import (
    Chosen,
    Point,
    parallel_coordinates,
    parameter_effects,
    trial_history,
    worst_against_accuracy,
)
from agrekd_ray.core.selection import RULES
from agrekd_ray.errors import RunError
from agrekd_ray.files import DamagedError, cannot_read, exists, in_a_line, read_json, unreadable
from agrekd_ray.results import Cost, Outcome, member_from_json
from agrekd_ray.search.board import in_words
from agrekd_ray.search.results import DEFAULT, FAILED, WINNER, SearchResult, TrialResult
from agrekd_ray.tracking.diagnostic_plots import calibration, fallback_by_group
from agrekd_ray.tracking.files import replacing
from agrekd_ray.tracking.plots import (
    draw_plots,
    influence_by_group,
    weights_by_group,
    worst_group_by_method,
)
from agrekd_ray.tracking.tables import degraded_lines, measured_over, render_degraded

RESULTS, TRIALS = "results.json", "trials.csv"
SHOWN = 8
"""Trials in the table on the screen; all are in the folder."""


def publish_files(folder: Path, result: SearchResult, *, anew: bool = True) -> None:
    """Write results.json, trials.csv, and what there is to draw as `plots/*.png`.

    Args:
        folder: of the search.
        result: what came out.
        anew: false writes what is missing and leaves the rest as it is.

    Raises:
        OSError: where they cannot be written.
    """
    if anew:
        with replacing(folder / RESULTS) as draft:
            draft.write_text(json.dumps(result.to_json(), default=str) + "\n", encoding="utf-8")
    if anew or not exists(folder / TRIALS):
        write_trials(folder / TRIALS, result.trials)
    trials, final = [_point(trial) for trial in result.trials], result.final
    winner = next((point for point in trials if point.number == result.winner), None)
    chosen = None if winner is None else Chosen(winner, f"the winner by {result.select}")
    members = [member_from_json(values) for values in result.about.get("members", [])]
    draw_plots(
        folder / "plots",
        {
            "worst_against_accuracy": lambda path: worst_against_accuracy(trials, path),
            "parameter_effects": lambda path: parameter_effects(trials, path, chosen=chosen),
            "parallel_coordinates": lambda path: parallel_coordinates(trials, path, chosen=chosen),
            "trial_history": lambda path: trial_history(
                trials, path, f"select/{result.select}", chosen
            ),
            "winner_against_default": lambda path: worst_group_by_method(final, path),
            "weights_by_group": lambda path: weights_by_group(final, members, path),
            "influence_by_group": lambda path: influence_by_group(final, members, path),
            "fallback_by_group": lambda path: fallback_by_group(final, path),
            "calibration": lambda path: calibration(final, path),
        },
        anew=anew,
    )


def _point(trial: TrialResult) -> Point:
    """A trial as pictures take it."""
    metrics = {
        f"test/{name}": v for name, v in (trial.test.scalars() if trial.test else {}).items()
    }
    if trial.history:
        last = trial.history[-1]
        metrics |= {f"val/{name}": value for name, value in last.val.scalars().items()}
        metrics |= {f"select/{rule}": score for rule, score in last.selection.items()}
    return Point(trial.name, trial.number, trial.setting, metrics, state=trial.state)


def read_result(folder: Path) -> SearchResult | None:
    """What `publish_files` wrote; None where the search has not come to its end.

    Args:
        folder: of the search.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / RESULTS
    try:
        return read_json(path, SearchResult)
    except FileNotFoundError:
        return None
    except (DamagedError, OSError) as error:
        if unreadable(error):
            raise cannot_read(path, error) from None
        raise RunError(
            f"{path}: damaged ({in_a_line(error)}); remove it to finish the search again."
        ) from None


def write_trials(path: Path, trials: list[TrialResult]) -> None:
    """A row a trial: setting, state, epochs, score by rule, test metrics.

    Args:
        path: the file, replaced as a whole.
        trials: of a search.
    """
    paths = list(dict.fromkeys(path for trial in trials for path in trial.setting))
    tests = ("worst_group_accuracy", "accuracy")
    partial = any(trial.test and measured_over(trial.test) for trial in trials)
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["trial", *paths, "state", "epochs", "seconds"]
        head += [f"select/{rule}" for rule in RULES] + [f"test/{name}" for name in tests]
        writer.writerow([*head, *["test/measured_over"] * partial, "reason"])
        for trial in trials:
            row = [trial.name, *(_cell(trial, path) for path in paths), trial.state]
            row += [str(len(trial.history)), f"{trial.seconds:.2f}"]
            row += [_number(trial.score(rule)) for rule in RULES]
            row += [_number(getattr(trial.test, name) if trial.test else None) for name in tests]
            row += [measured_over(trial.test) if trial.test else ""] * partial
            writer.writerow([*row, trial.reason or ""])


def show(result: SearchResult, cost: Cost, console: Console, mlflow: str, unsent: int) -> None:
    """The end of a search on the screen.

    Args:
        result: what came out.
        cost: of all attempts, to their ends.
        console: to print on.
        mlflow: what a person types to see the runs.
        unsent: writes that MLflow did not get.
    """
    console.print()
    console.print(_trials_table(result))
    console.print(_rules_table(result))
    if result.final:
        console.print(_final_table(result.final))
        render_degraded(degraded_lines(result.final, str), console)
    winner = next(trial for trial in result.trials if trial.number == result.winner)
    lines = [
        ("winner", f"{winner.name}, chosen by {result.selected_on}: {in_words(winner.setting)}"),
        ("verdict", result.verdict),
        ("finished in", cost.in_words),
        ("teachers", cost.effort.in_words if cost.effort else ""),
        ("results", result.folder),
        ("MLflow", mlflow),
    ]
    for name, value in lines:
        if value:
            console.print(Text(f"{name:<12}{value}"), soft_wrap=True)
    if unsent:
        text = (
            f"MLflow did not get everything: when it answers again, agrekd resume {result.folder}"
        )
        console.print(Text(text, style="yellow"), soft_wrap=True)


def _trials_table(result: SearchResult) -> Table:
    over = [trial for trial in result.trials if trial.state != FAILED]
    ranked = sorted(over, key=lambda t: (-(t.score(result.select) or -1.0), t.number))
    failed = len(result.trials) - len(over)
    title = f"{len(result.trials)} trials"
    title += f", {failed} of them failed" if failed else ""
    title += f", the best {SHOWN} by {result.select}" if len(ranked) > SHOWN else ""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Trial", "Setting", "State", "Epochs", result.select, "Test WGA"):
        left = name in ("Trial", "Setting", "State")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "Setting")
    for trial in ranked[:SHOWN]:
        table.add_row(
            Text(trial.name, style="bold" if trial.number == result.winner else ""),
            Text(in_words(trial.setting)),
            trial.state,
            f"{len(trial.history)}/{trial.epochs}",
            _percent(trial.score(result.select)),
            _percent(trial.test.worst_group_accuracy if trial.test else None),
        )
    return table


def _rules_table(result: SearchResult) -> Table:
    trials = max((rule.trials for rule in result.rules), default=0)
    title = f"Rules: their choices, and rank correlation with test WGA over {trials} trials"
    title += f"; WGA: {result.worst}" if result.worst != "worst group" else ""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Rule", "Needs", "Correlation", "Its choice", "Test WGA"):
        left = name in ("Rule", "Needs", "Its choice")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for rule in result.rules:
        table.add_row(
            Text(rule.rule, style="bold" if rule.rule == result.select else ""),
            ", ".join(rule.needs),
            "–" if rule.correlation is None else f"{rule.correlation:+.2f}",
            f"trial-{rule.choice:03}",
            _percent(rule.test_worst_group_accuracy),
        )
    return table


def _final_table(final: list[Outcome]) -> Table:
    seeds = len({outcome.seed for outcome in final})
    title = f"Trained again, {seeds} fresh seed{'s' * (seeds != 1)}, test split in %"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    worst = final[0].splits["test"].worst.capitalize()
    for name in ("", worst, "Accuracy", "ECE"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for method in (WINNER, DEFAULT):
        tests = [outcome.splits["test"] for outcome in final if outcome.method == method]
        figures = ("worst_group_accuracy", "accuracy", "ece")
        cells = [_spread([getattr(test, name) for test in tests]) for name in figures]
        table.add_row(method, *cells)
    return table


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _cell(trial: TrialResult, path: str) -> str:
    if path not in trial.setting:
        return ""
    value = trial.setting[path]
    return value if isinstance(value, str) else json.dumps(value)
